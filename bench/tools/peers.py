"""The same work in PyTorch and PEFT. Each command prints one JSON document.

    peers.py lowrank MATRIX SIZE    torch.svd_lowrank of a f32 matrix to rank 64: seconds and errors
    peers.py full MATRIX SIZE       torch.linalg.svd of it, which gives the smallest error
    peers.py peft ADAPTER …         PEFT's add_weighted_adapter (svd, rank 16) of adapters for one layer of TinyLlama
    peers.py error BASE TUNED ADAPTER [ADAPTER]   ‖ΔW − s·B·A‖/‖ΔW‖ over all weights that the adapter changes
"""
import json
import pathlib
import sys
import time

import numpy
import torch

RANK = 64


def matrix(path, size):
    return torch.from_numpy(numpy.fromfile(path, dtype=numpy.float32).reshape(int(size), int(size)))


def error(w, u, s, v):
    return float(torch.linalg.norm(w - (u * s) @ v.T) / torch.linalg.norm(w))


def lowrank(path, size):
    w = matrix(path, size)
    result = []
    for q, niter in ((64, 2), (76, 2), (76, 4), (76, 6)):
        start = time.perf_counter()
        u, s, v = torch.svd_lowrank(w, q=q, niter=niter)
        seconds = time.perf_counter() - start
        result.append({"q": q, "niter": niter, "seconds": seconds, "error": error(w, u[:, :RANK], s[:RANK], v[:, :RANK])})
    return result


def full(path, size):
    w = matrix(path, size)
    start = time.perf_counter()
    s = torch.linalg.svd(w, full_matrices=False)[1].double()
    return {"seconds": time.perf_counter() - start, "error": float(torch.sqrt((s[RANK:] ** 2).sum() / (s ** 2).sum()))}


def peft(*adapters):
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=1, num_attention_heads=32, num_key_value_heads=4, vocab_size=8)
    model = PeftModel.from_pretrained(LlamaForCausalLM(config), adapters[0], adapter_name="0")
    for i, path in enumerate(adapters[1:], 1):
        model.load_adapter(path, adapter_name=str(i))
    start = time.perf_counter()
    model.add_weighted_adapter([str(i) for i in range(len(adapters))], [1.0] * len(adapters), "all", combination_type="svd", svd_rank=16)
    return {"seconds": time.perf_counter() - start}


def reader(folder):
    from safetensors import safe_open
    index = json.loads((pathlib.Path(folder) / "model.safetensors.index.json").read_text())["weight_map"]
    files = {name: safe_open(pathlib.Path(folder) / name, "pt") for name in set(index.values())}
    return lambda name: files[index[name]].get_tensor(name).float()


def errors(base, tuned, *adapters):
    from safetensors.torch import load_file
    before, after = reader(base), reader(tuned)
    result = []
    for path in adapters:
        tensors = load_file(pathlib.Path(path) / "adapter_model.safetensors")
        off = total = 0.0
        for key, a in tensors.items():
            if not key.endswith(".lora_A.weight"):
                continue
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            change = after(name) - before(name)
            total += float(change.double().pow(2).sum())
            off += float((change - tensors[key.replace("lora_A", "lora_B")].float() @ a.float()).double().pow(2).sum())
        result.append((off / total) ** 0.5)
    return result


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    print(json.dumps({"lowrank": lowrank, "full": full, "peft": peft, "error": errors}[command](*arguments)))
