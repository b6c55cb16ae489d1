"""Small GGUF files, and what a merge makes of them, by gguf-py and NumPy.

    pip install gguf==0.19.0 safetensors==0.6.2 && python scripts/golden/gguf_merge.py

Writes tests/golden/gguf-merge/: base.gguf with weights of many types, adapter/ (PEFT's files), and expected.json with type, shape,
bytes and digest of each tensor of the result. parts/ has the same for a model in two files, with DoRA, an expert and a replaced head. The factors are multiples of 1/8, so that their products are exact whatever the order of the sums.
"""

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

HEADS, KEY_HEADS, HEAD, HIDDEN, INNER, VOCABULARY, RANK, SCALING = 2, 1, 4, 256, 32, 12, 2, 0.5
OUT = Path(__file__).parent.parent.parent / "tests/golden/gguf-merge"
rng = np.random.default_rng(5)

# name in the GGUF file: (module, shape, type, heads of permuted rows)
WEIGHTS = {
    "token_embd.weight": ("model.embed_tokens", (VOCABULARY, HIDDEN), T.Q8_0, None),
    "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj", (HEADS * HEAD, HIDDEN), T.Q4_K, HEADS),
    "blk.0.attn_k.weight": ("model.layers.0.self_attn.k_proj", (KEY_HEADS * HEAD, HIDDEN), T.Q4_0, KEY_HEADS),
    "blk.0.attn_v.weight": ("model.layers.0.self_attn.v_proj", (KEY_HEADS * HEAD, HIDDEN), T.Q6_K, None),
    "blk.0.attn_output.weight": ("model.layers.0.self_attn.o_proj", (HIDDEN, HEADS * HEAD), T.F16, None),
    "blk.0.ffn_gate.weight": ("model.layers.0.mlp.gate_proj", (INNER, HIDDEN), T.Q5_1, None),
    "blk.0.ffn_up.weight": ("model.layers.0.mlp.up_proj", (INNER, HIDDEN), T.Q5_0, None),
    "blk.0.ffn_down.weight": ("model.layers.0.mlp.down_proj", (HIDDEN, INNER), T.Q4_1, None),
    "blk.1.attn_q.weight": ("model.layers.1.self_attn.q_proj", (HEADS * HEAD, HIDDEN), T.F32, HEADS),
    "blk.1.ffn_gate.weight": ("model.layers.1.mlp.gate_proj", (INNER, HIDDEN), T.IQ4_NL, None),
    "blk.1.ffn_up.weight": ("model.layers.1.mlp.up_proj", (INNER, HIDDEN), T.BF16, None),
    "blk.1.ffn_down.weight": ("model.layers.1.mlp.down_proj", (HIDDEN, INNER), T.Q8_0, None),
}
# Tensors that no layer of the adapter changes. Q2_K is a type that lowrank does not read.
OTHERS = {
    "blk.0.attn_norm.weight": ((HIDDEN,), T.F32),
    "blk.1.attn_k.weight": ((KEY_HEADS * HEAD, HIDDEN), T.Q2_K),
    "output_norm.weight": ((HIDDEN,), T.F32),
}


def stored(shape, kind):
    values = rng.normal(size=shape).astype(np.float32)
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        size, byte_length = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, size=(np.prod(shape) // size, byte_length), dtype=np.uint8)
        places = {T.Q6_K: [208], T.Q4_K: [0, 2], T.IQ4_NL: [0], T.Q2_K: [80, 82]}[kind]
        for place in places:
            scales = (rng.normal(size=len(blocks)) / 64).astype(np.float16)
            blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
        return blocks.reshape(*shape[:-1], -1)


def permute(values, heads):
    """llama.cpp's LlamaModel.permute, conversion/llama.py."""
    rows = values.shape[0]
    return values.reshape(heads, 2, rows // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def digest(array):
    data = np.ascontiguousarray(array).tobytes()
    return [len(data), hashlib.sha256(data).hexdigest()]


def main():
    (OUT / "adapter").mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(OUT / "base.gguf", "llama")
    writer.add_block_count(2)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_token_list([f"w{i}" for i in range(VOCABULARY)])
    writer.add_custom_alignment(64)
    factors, expected = {}, {}
    data = {name: stored(shape, kind) for name, (_, shape, kind, _) in WEIGHTS.items()}
    for name, (module, shape, kind, heads) in WEIGHTS.items():
        writer.add_tensor(name, data[name], raw_dtype=kind)
        if name == "token_embd.weight":
            expected[name] = [kind.name, list(shape), *digest(data[name])]
            # The head shares this weight. A LoRA layer of the head alone makes it a tensor of its own.
            module, name = "lm_head", "output.weight"
        a = rng.integers(-8, 9, size=(RANK, shape[1])).astype(np.float32) / 8
        b = rng.integers(-8, 9, size=(shape[0], RANK)).astype(np.float32) / 8
        factors[f"base_model.model.{module}.lora_A.weight"] = a
        factors[f"base_model.model.{module}.lora_B.weight"] = b
        delta = (SCALING * (b @ a)).astype(np.float32)
        source = data["token_embd.weight"] if name == "output.weight" else data[name]
        merged = gguf.quants.dequantize(source, kind).astype(np.float32) + (delta if heads is None else permute(delta, heads))
        to = T.Q8_0 if kind in (T.Q4_K, T.Q6_K, T.IQ4_NL) else kind
        expected[name] = [to.name, list(shape), *digest(gguf.quants.quantize(merged, to))]
    for name, (shape, kind) in OTHERS.items():
        values = stored(shape, kind)
        writer.add_tensor(name, values, raw_dtype=kind)
        expected[name] = [kind.name, list(shape), *digest(values)]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(factors, OUT / "adapter/adapter_model.safetensors")
    modules = sorted({module.rsplit(".", 1)[-1] for module, *_ in WEIGHTS.values()} - {"embed_tokens"} | {"lm_head"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK * SCALING, "target_modules": modules}
    (OUT / "adapter/adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def parts():
    """DoRA is told by its values: they are rounded after sums whose order is free."""
    out = OUT / "parts"
    out.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(out / "base.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(1)
    writer.add_head_count(2)
    embedding = rng.normal(size=(12, 32)).astype(np.float16)
    query = rng.normal(size=(16, 32)).astype(np.float32)
    experts = gguf.quants.quantize(rng.normal(size=(3, 8, 32)).astype(np.float32), T.Q8_0)
    for name, data, kind in [
        ("token_embd.weight", embedding, T.F16),
        ("blk.0.attn_q.weight", query, T.F32),
        ("blk.0.ffn_gate_exps.weight", experts, T.Q8_0),
    ]:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def delta(factors, module, d):
        a = rng.integers(-8, 9, size=(RANK, 32)).astype(np.float32) / 8
        b = rng.integers(-8, 9, size=(d, RANK)).astype(np.float32) / 8
        factors[f"base_model.model.{module}.lora_A.weight"] = a
        factors[f"base_model.model.{module}.lora_B.weight"] = b
        return (SCALING * (b @ a)).astype(np.float32)

    def save(folder, factors, **config):
        folder.mkdir(exist_ok=True)
        save_file(factors, folder / "adapter_model.safetensors")
        common = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK * SCALING}
        (folder / "adapter_config.json").write_text(json.dumps(common | config, indent=1) + "\n")

    # The rows of the file are permuted: PEFT's magnitudes and factors have the rows of transformers.
    rows = np.argsort(permute(np.arange(16)[:, None], 2)[:, 0])
    magnitude = np.linspace(0.5, 3, 16).astype(np.float32)
    head = rng.normal(size=(12, 32)).astype(np.float32)
    factors = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": magnitude,
        "base_model.model.lm_head.weight": head,
    }
    changed = query[rows].astype(np.float64) + delta(factors, "model.layers.0.self_attn.q_proj", 16)
    dora = permute(magnitude[:, None] * changed / np.linalg.norm(changed, axis=1, keepdims=True), 2)
    save(out / "adapter", factors, target_modules=["q_proj"], modules_to_save=["lm_head"], use_dora=True)
    factors, values = {}, gguf.quants.dequantize(experts, T.Q8_0)
    values[1] += delta(factors, "model.layers.0.block_sparse_moe.experts.1.w1", 8)
    save(out / "experts", factors, target_modules=["w1"])
    expected = {
        "token_embd.weight": ["F16", [12, 32], *digest(embedding)],
        "blk.0.attn_q.weight": ["F32", [16, 32], dora.astype(np.float32).tolist()],
        "blk.0.ffn_gate_exps.weight": ["Q8_0", [3, 8, 32], *digest(gguf.quants.quantize(values, T.Q8_0))],
        "output.weight": ["F16", [12, 32], *digest(head.astype(np.float16))],
    }
    (out / "expected.json").write_text(json.dumps(expected) + "\n")


main()
parts()
