"""Tiny random models as several exporters write them, each with PyTorch's and PEFT's numbers beside it.

    exporters.py [--out tests/golden/models] [--optimum PYTHON] [NAME …]

--optimum: the Python of a virtual environment with requirements-optimum.txt, for the models named *-optimum.
Every model is kept only if ONNX Runtime gives PyTorch's logits. ../../tests/golden/README.md explains the folders.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
import torch

from common import (ADAMW, GOLDEN, LLAMA_LINEARS, UNION, adamw, adapt, fresh, gradients, logits_summary, loss_of,
                    make_batches, save_adapter, save_tensors, tensors, versions, worst_gradient_error, write_json)

SEED, STEPS, NEW_TOKENS = 5, 5, 12
PROMPT = [0, 54, 260, 1356, 270, 262, 520, 455]  # "The Constitution of the United States"
SPECIAL = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


# ---------------------------------------------------------------- the models in PyTorch

def llama_config(**changes):
    from transformers import LlamaConfig
    return LlamaConfig(**{**SPECIAL, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
                          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
                          "max_position_embeddings": 128, "tie_word_embeddings": True, **changes})


def qwen2_config():
    from transformers import Qwen2Config
    return Qwen2Config(**SPECIAL, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=128, tie_word_embeddings=False)


def gpt2_config():
    from transformers import GPT2Config
    return GPT2Config(**SPECIAL, n_embd=32, n_head=4, n_layer=2, n_inner=80, n_positions=128, resid_pdrop=0.0,
                      embd_pdrop=0.0, attn_pdrop=0.0)


def qwen3_config():
    from transformers import Qwen3Config
    return Qwen3Config(**SPECIAL, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, head_dim=16,
                       num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=128, tie_word_embeddings=True)


def phi3_config():
    from transformers import Phi3Config
    return Phi3Config(**SPECIAL, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
                      num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=128, original_max_position_embeddings=128,
                      sliding_window=None, tie_word_embeddings=False)


BASES = {
    "qwen3": (qwen3_config, {"target_modules": LLAMA_LINEARS}),
    "phi3": (phi3_config, {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}),
    "llama": (llama_config, {"target_modules": LLAMA_LINEARS}),
    "llama-1": (lambda: llama_config(num_hidden_layers=1, hidden_size=32, intermediate_size=64), {"target_modules": LLAMA_LINEARS}),
    "qwen2": (qwen2_config, {"target_modules": LLAMA_LINEARS}),
    "gpt2": (gpt2_config, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
}


def build(base, dtype=torch.float32):
    """Random weights, made in the order of the parameters' names and scaled so that each layer matters."""
    from transformers import AutoModelForCausalLM
    config = BASES[base][0]()
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(SEED)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
            elif p is head or "embed" in name or "wte" in name or "wpe" in name:
                p.copy_(0.3 * noise)
            else:
                k = p.shape[0] if base == "gpt2" else p.shape[1]
                p.copy_(noise * 1.5 / k ** 0.5)
    return model.eval().to(dtype)


def save_base(base, folder):
    """The model as on the Hub for PyTorch: what exporters read."""
    fresh(folder)
    build(base).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(UNION / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.get("rope_theta", 10000.0)  # where transformers 4 looks for it
    (folder / "config.json").write_text(json.dumps(config, indent=2))


# ---------------------------------------------------------------- exporters: (source folder, output folder)

def call(*command):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout[-3000:]}\n{result.stderr[-5000:]}")


def optimum(source, out, args):
    call(args.optimum, "-m", "optimum.exporters.onnx", "--model", source, "--task", "text-generation-with-past",
         "--dtype", "fp32", out)


SEPARATE_ROTARY = """
import onnxruntime_genai.models  # puts its folder on the path
from builders.base import Model
Model.is_fused_rope_supported = lambda self: False
"""


def genai(*options, precision="fp32", patch=""):
    """onnxruntime-genai's builder for the CPU; `patch` is Python to run before it."""
    def export(source, out, args):
        code = patch + "import runpy; runpy.run_module('onnxruntime_genai.models.builder', run_name='__main__')"
        with tempfile.TemporaryDirectory() as cache:
            call(sys.executable, "-c", code, "-i", source, "-o", out, "-p", precision, "-e", "cpu", "-c", cache,
                 *(("--extra_options", *options) if options else ()))
    return export


def dynamo(source, out, args):
    """torch.onnx.export's newer exporter, without a cache."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager", dtype=torch.float32).eval()

    class NoCache(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.lm_head = model.model, model.lm_head

        def forward(self, input_ids, attention_mask):
            return self.lm_head(self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0])

    ids = torch.randint(3, 2048, (2, 7))
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    out.mkdir()
    torch.onnx.export(NoCache(), (ids, torch.ones_like(ids)), out / "model.onnx", dynamo=True, external_data=False,
                      input_names=["input_ids", "attention_mask"], output_names=["logits"], verbose=False,
                      dynamic_shapes={"input_ids": axes, "attention_mask": axes})
    exported = onnx.load(out / "model.onnx")
    for node in exported.graph.node:  # stack traces name this machine's folders
        kept = [p for p in node.metadata_props if not p.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(exported, out / "model.onnx")


def then(change):
    """optimum's export, then a change of its file."""
    def export(source, out, args):
        optimum(source, out, args)
        change(out / "model.onnx", args)
    return export


def merged(path, args):
    """One file with an If, as optimum merges a decoder without and one with a past (here the same one twice)."""
    call(args.optimum, "-c", "import sys; from optimum.onnx import merge_decoders; p = sys.argv[1]; merge_decoders(p, p, save_path=p)", path)


def float16(path, args):
    from onnxruntime.transformers.float16 import convert_float_to_float16
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def int4(path, args):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=True)
    quantizer.process()
    onnx.save(quantizer.model.model, path)


def int8(path, args):
    from onnxruntime.quantization import QuantType, quantize_dynamic
    quantize_dynamic(path, path, weight_type=QuantType.QInt8)


LOOSE = float("inf")
EXPORTS = {  # name: (base, exporter)
    "llama-optimum": ("llama", optimum),
    "llama-genai": ("llama", genai()),
    "llama-genai-rotary": ("llama", genai("fuse_qkv=false", patch=SEPARATE_ROTARY)),
    "qwen3-genai": ("qwen3", genai()),
    "phi3-genai": ("phi3", genai()),
    "llama-dynamo": ("llama", dynamo),
    "qwen2-optimum": ("qwen2", optimum),
    "gpt2-optimum": ("gpt2", optimum),
    "merged-if": ("llama-1", then(merged)),
}
REFUSED = {  # name: (base, exporter, op at fault, allowed error of a logit)
    "llama-fp16": ("llama-1", then(float16), "MatMul", 0.1),
    "llama-q4": ("llama-1", then(int4), "MatMulNBits", LOOSE),
    "llama-genai-int4": ("llama-1", genai(precision="int4"), "MatMulNBits", LOOSE),
    "llama-q8": ("llama-1", then(int8), "MatMulInteger", LOOSE),
}


def shape_like_hub(source, exported, folder):
    """Moves an exporter's output to config.json, tokenizer files and onnx/."""
    fresh(folder)
    (folder / "onnx").mkdir()
    for file in sorted(exported.iterdir()):
        if ".onnx" in file.name:
            shutil.copyfile(file, folder / "onnx" / file.name)
    for name in ("config.json", "generation_config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        place = source if name.startswith("tokenizer") or not (exported / name).exists() else exported
        if (place / name).exists():
            shutil.copyfile(place / name, folder / name)


# ---------------------------------------------------------------- check and numbers

TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}


def onnx_logits(path, ids, mask, head_dim):
    """Logits with an empty past."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids, mask = np.array(ids, np.int64), np.array(mask, np.int64)
    feeds = {}
    for i in session.get_inputs():
        if i.name.startswith("past_key_values"):
            _, heads, _, dim = i.shape
            feeds[i.name] = np.zeros((ids.shape[0], heads, 0, dim if isinstance(dim, int) else head_dim), TYPES[i.type])
        else:
            feeds[i.name] = {"input_ids": ids, "attention_mask": mask,
                             "position_ids": np.tile(np.arange(ids.shape[1]), (ids.shape[0], 1)),
                             "use_cache_branch": np.array([False])}[i.name]
    return session.run(["logits"], feeds)[0]


def onnx_deviation(path, model, batches):
    """Largest error of a logit at real positions, over the prompt and all batches."""
    worst, config = 0, model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for ids, mask in [([PROMPT], [[1] * len(PROMPT)])] + [(b["inputIds"], b["attentionMask"]) for b in batches]:
        with torch.no_grad():
            truth = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), use_cache=False).logits.numpy()
        error = np.abs(onnx_logits(path, ids, mask, head_dim) - truth)[np.array(mask) == 1]
        worst = max(worst, float(error.max()))
    return worst


@torch.no_grad()
def greedy(model):
    """Tokens after the prompt, and the smallest lead of a chosen token over the second."""
    ids, lead = list(PROMPT), float("inf")
    for _ in range(NEW_TOKENS):
        top = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return ids[len(PROMPT):], lead


def numbers(base, folder, onnx_path):
    batches, out = make_batches(), fresh(folder)
    config = {"r": 4, "lora_alpha": 8, **BASES[base][1]}

    def start(wide):
        model = adapt(build(base), SEED, 0.1, name=f"tiny-{base}", **config)
        return model.double() if wide else model

    deviation = {"onnx": onnx_deviation(onnx_path, build(base), batches)}
    if deviation["onnx"] > 1e-4:
        sys.exit(f"{onnx_path}: logits differ from PyTorch's by {deviation['onnx']}")
    wide, narrow = start(True), start(False)
    save_adapter(narrow, out / "adapter-init")
    grads = [gradients(wide, b) for b in batches[:2]]
    for i, g in enumerate(grads):
        save_tensors(out / f"gradients-{i}.safetensors", g)
    loss = [loss_of(wide, b).item() for b in batches]
    deviation["gradients"] = max(worst_gradient_error(g, gradients(narrow, b)) for g, b in zip(grads, batches))
    base_model = build(base)
    base_greedy, base_lead = greedy(base_model)
    adapted_greedy, adapted_lead = greedy(narrow)
    base_logits, adapted_logits = logits_summary(build(base).double(), [PROMPT])[0], logits_summary(wide, [PROMPT])[0]
    losses, norms = adamw(wide, batches, STEPS)
    narrow_losses, _ = adamw(narrow, batches, STEPS)
    deviation["adamwLosses"] = max(abs(a - b) for a, b in zip(losses, narrow_losses))
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft", "onnxruntime"),
        "seed": SEED,
        "adamw": ADAMW,
        "baseLoss": [loss_of(build(base).double(), b).item() for b in batches],
        "loss": loss,
        "adamwLosses": losses,
        "gradNorms": norms,
        "base": {**base_logits, "greedyIds": base_greedy, "smallestLead": base_lead},
        "adapted": {**adapted_logits, "greedyIds": adapted_greedy, "smallestLead": adapted_lead},
        "float32Deviation": deviation,
        "batches": batches,
    })
    print(folder, deviation, base_greedy, base_lead, adapted_greedy, adapted_lead)


def refused(base, folder, onnx_path, op, allowed):
    nodes = [n.name for n in onnx.load(onnx_path, load_external_data=False).graph.node if n.op_type == op]
    error = onnx_deviation(onnx_path, build(base), make_batches())
    if error > allowed or not nodes:
        sys.exit(f"{onnx_path}: logits differ from PyTorch's by {error}; {len(nodes)} nodes {op}")
    write_json(fresh(folder) / "golden.json", {"refuse": {"op": op, "nodes": nodes}, "onnxDeviation": error})
    print(folder, error, nodes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "models")
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    for name in args.names or [*EXPORTS, *REFUSED]:
        base, exporter, *refusal = (EXPORTS | REFUSED)[name]
        with tempfile.TemporaryDirectory() as work:
            source, exported = pathlib.Path(work) / f"tiny-{base}", pathlib.Path(work) / "exported"
            save_base(base, source)
            exporter(source, exported, args)
            shape_like_hub(source, exported, args.out / name)
        (refused if refusal else numbers)(base, args.out / name / "golden", args.out / name / "onnx" / "model.onnx", *refusal)


if __name__ == "__main__":
    main()
