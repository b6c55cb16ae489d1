"""Tiny graphs with an embedding in integers, as quantizers of ONNX Runtime write it, with PyTorch's numbers beside them.

    lookups.py [--out tests/golden/lookups]

y = (E[ids] + c) @ W. numbers.safetensors holds ids, E (V, D) that the integers stand for by ONNX Runtime's own lookup, ONNX Runtime's y, an
adapter of the embedding and trained rows of some tokens, and PyTorch's y with each.
"""
import argparse
import pathlib
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from safetensors.torch import save_file

from common import GOLDEN, fresh, versions, write_json

V, K, D, RANK, SCALING, SEED = 40, 32, 12, 3, 2.0, 13
IDS = [[3, 0, 39, 7], [7, 12, 3, 25]]
TOKENS = [3, 12, 39]


def plain():
    rng = np.random.default_rng(SEED)
    nodes = [helper.make_node("Gather", ["embed_tokens.weight", "ids"], ["e"], "/model/embed_tokens/Gather"),
             helper.make_node("Add", ["e", "c"], ["h"], "/model/Add"),
             helper.make_node("MatMul", ["h", "w"], ["y"], "/model/fc/MatMul")]
    init = [numpy_helper.from_array(rng.standard_normal((V, K)).astype(np.float32), "embed_tokens.weight"),
            numpy_helper.from_array(rng.standard_normal(K).astype(np.float32), "c"),
            numpy_helper.from_array((rng.standard_normal((K, D)) / K ** 0.5).astype(np.float32), "w")]
    graph = helper.make_graph(nodes, "lookups", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", D])], init)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def blocks(symmetric):
    def make(path):
        config = DefaultWeightOnlyQuantConfig(block_size=16, is_symmetric=symmetric, op_types_to_quantize=("Gather",), quant_axes=(("Gather", 1),))
        quantizer = MatMulNBitsQuantizer(plain(), algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, path)
    return make


def packed(path):
    """As onnxruntime-genai shares the head's packed bytes: uint8, two numbers in each, in another shape."""
    blocks(True)(path)
    model = onnx.load(path)
    [node] = [n for n in model.graph.node if n.op_type == "GatherBlockQuantized"]
    tensor = next(i for i in model.graph.initializer if i.name == node.input[0])
    signed = numpy_helper.to_array(tensor).astype(np.int8).reshape(V, K // 2, 2) + 8
    bytes_ = (signed[..., 0] | (signed[..., 1] << 4)).astype(np.uint8)
    tensor.CopyFrom(numpy_helper.from_array(bytes_.reshape(V, K // 16, 8), tensor.name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([V, K // 2], np.int64), "shape"))
    model.graph.node.insert(0, helper.make_node("Reshape", [tensor.name, "shape"], ["table"], "/model/embed_tokens/Reshape"))
    node.input[0] = "table"
    onnx.save(model, path)


def dynamic(path):
    """Unsigned bytes, whichever type is asked for."""
    with tempfile.TemporaryDirectory() as work:
        source = pathlib.Path(work) / "plain.onnx"
        onnx.save(plain(), source)
        quantize_dynamic(source, path, op_types_to_quantize=["Gather"])


FORMS = {"int4": blocks(True), "uint4-zeros": blocks(False), "packed": packed, "int8": dynamic}


def run(model, output, ids):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    return ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"ids": np.array(ids, np.int64)})[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "lookups")
    out = fresh(parser.parse_args().out)
    init = {i.name: torch.tensor(numpy_helper.to_array(i)).double() for i in plain().graph.initializer}
    for name, make in FORMS.items():
        folder = fresh(out / name)
        make(folder / "model.onnx")
        model = onnx.load(folder / "model.onnx")
        model.producer_name, model.producer_version = "", ""
        onnx.save(model, folder / "model.onnx")
        before = next(n.input[0] for n in model.graph.node if n.op_type == "Add")
        table = torch.tensor(run(model, before, [list(range(V))])[0]).double()
        rng = torch.Generator().manual_seed(SEED)
        a, b = torch.randn(RANK, V, generator=rng).double(), (torch.randn(K, RANK, generator=rng) * 0.3).double()
        rows = torch.randn(len(TOKENS), K, generator=rng).double()
        ids = torch.tensor(IDS)
        forward = lambda e: (e[ids] + init["c"]) @ init["w"]
        trained = table.clone()
        trained[TOKENS] = rows
        tensors = {"ids": ids, "table": table, "base": forward(table), "A": a, "B": b, "adapted": forward(table + SCALING * (b @ a).T),
                   "rows": rows, "trained": forward(trained)}
        error = float(np.abs(run(model, "y", IDS) - tensors["base"].numpy()).max())
        if error > 1e-5:
            raise SystemExit(f"{name}: ONNX Runtime differs by {error}")
        save_file({key: v.float().contiguous() for key, v in tensors.items()}, folder / "numbers.safetensors")
        print(name, error, [n.op_type for n in model.graph.node])
    write_json(out / "golden.json", {"versions": versions("torch", "onnx", "onnxruntime"), "scaling": SCALING, "tokens": TOKENS, "forms": list(FORMS)})


if __name__ == "__main__":
    main()
