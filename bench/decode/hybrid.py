"""Graphs with the shape of Qwen3.5-0.8B and random weights for run.mjs, with the inputs that transformers.js feeds.

    hybrid.py MODEL OUT

MODEL: the folder of `bench/train-step/peer.py make qwen3_5-800m MODEL`. OUT gets onnx/model.onnx, whose weights are those of MODEL,
onnx/model_q4.onnx, with MatMulNBits in blocks of 32, and a tokenizer of the words w0, w1, …. Needs requirements.txt of scripts/golden. After a prompt of n tokens, transformers.js 4.3 goes on with
position 3n instead of n, so that it writes another text; its steps do the same work.
"""
import json
import pathlib
import re
import shutil
import sys

import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "golden"))
from common import fresh, save_words, write_json  # noqa: E402

VOCABULARY = 248320


def renamed(name):
    """past_key_values.0.conv_state → past_conv.0"""
    return re.sub(r"^(past|present)(?:_key_values)?\.(\d+)\.(conv|recurrent)_state$", r"\1_\3.\2", name)


def take_three_axes(graph):
    """transformers.js feeds positions for time, height and width. They are equal for texts, and the graph reads the first."""
    positions = next(value for value in graph.input if value.name == "position_ids")
    for node in graph.node:
        node.input[:] = ["position_ids/text" if name == "position_ids" else name for name in node.input]
    dims = [3, *(dim.dim_param for dim in positions.type.tensor_type.shape.dim)]
    positions.CopyFrom(helper.make_tensor_value_info("position_ids", TensorProto.INT64, dims))
    graph.initializer.append(helper.make_tensor("position_ids/first", TensorProto.INT64, [], [0]))
    graph.node.insert(0, helper.make_node("Gather", ["position_ids", "position_ids/first"], ["position_ids/text"], "position_ids/Gather", axis=0))


def suit(graph):
    for value in [*graph.input, *graph.output]:
        value.name = renamed(value.name)
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_param = "batch_size"  # transformers.js begins with empty states for other names
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed(name) for name in names]
    take_three_axes(graph)


def main():
    source, out = map(pathlib.Path, sys.argv[1:])
    fresh(out / "onnx")
    plain = onnx.load(source / "onnx" / "model.onnx", load_external_data=False)
    suit(plain.graph)
    onnx.save(plain, out / "onnx" / "model.onnx")
    shutil.copyfile(source / "onnx" / "model.onnx.data", out / "onnx" / "model.onnx.data")  # ONNX refuses links
    quantizer = MatMulNBitsQuantizer(onnx.load(source / "onnx" / "model.onnx"), block_size=32, is_symmetric=True)
    quantizer.process()
    suit(quantizer.model.model.graph)
    onnx.save(quantizer.model.model, out / "onnx" / "model_q4.onnx")
    shutil.copyfile(source / "generation_config.json", out / "generation_config.json")
    config = json.loads((source / "config.json").read_text())
    write_json(out / "config.json", {**config, "vision_config": {}})  # transformers.js reads a field of it, for texts too
    save_words(out, VOCABULARY)


if __name__ == "__main__":
    main()
