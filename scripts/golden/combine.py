"""What PEFT's add_weighted_adapter makes of small adapters.

    combine.py [--out tests/golden/combine]

Writes the adapters' folders (qwen2 of peft_kinds.py: ranks 3, 3, 4; one with rsLoRA, one with patterns), and for each case of
cases.json the change of every layer, s·B·A of PEFT's result, in deltas.safetensors as CASE/LAYER.
"""
import argparse
import pathlib

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import packed
from common import GOLDEN, fresh, save_adapter, save_tensors, versions, write_json
from peft_kinds import build

ADAPTERS = {
    "first": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    "second": {"r": 3, "lora_alpha": 2, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    "wide": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "embed_tokens"]},
    "rslora": {"r": 3, "lora_alpha": 4, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    "patterns": {"r": 3, "lora_alpha": 5, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"down_proj": 7},
                 "target_modules": ["q_proj", "k_proj", "down_proj"]},
}
CASES = {  # case: (adapters, weights, options of add_weighted_adapter)
    "linear": (["first", "second"], [0.7, 1.5], {"combination_type": "linear"}),
    "linear-negative": (["first", "second"], [1.0, -0.5], {"combination_type": "linear"}),
    "cat": (["first", "wide"], [1.0, 0.5], {"combination_type": "cat"}),
    "cat-patterns": (["patterns", "second"], [1.0, -0.5], {"combination_type": "cat"}),
    "svd-rank": (["first", "wide"], [1.0, -0.5], {"combination_type": "svd", "svd_rank": 2}),
    "linear-rslora": (["rslora", "first"], [1.0, 0.5], {"combination_type": "linear"}),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "combine")
    out = fresh(parser.parse_args().out)
    for i, (name, config) in enumerate(ADAPTERS.items()):
        model = get_peft_model(build("qwen2"), LoraConfig(task_type="CAUSAL_LM", **config))
        torch.manual_seed(100 + i)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(std=0.3)
        save_adapter(model, out / name, save_embedding_layers=False)
    deltas = {}
    for case, (adapters, weights, options) in CASES.items():
        model = PeftModel.from_pretrained(build("qwen2"), out / adapters[0], adapter_name=adapters[0])
        for name in adapters[1:]:
            model.load_adapter(out / name, adapter_name=name)
        model.add_weighted_adapter(adapters, weights, "combined", **options)
        for module, layer in model.base_model.model.named_modules():
            if hasattr(layer, "lora_A") and ("combined" in layer.lora_A or "combined" in layer.lora_embedding_A):
                deltas[f"{case}/{module}"] = layer.get_delta_weight("combined").detach().contiguous()
    save_tensors(out / "deltas.safetensors", deltas)
    write_json(out / "cases.json", {"versions": versions("torch", "transformers", "peft"), "cases": {
        case: {"adapters": adapters, "weights": weights, "options": options} for case, (adapters, weights, options) in CASES.items()}})
    packed.pack(out, "combine")


if __name__ == "__main__":
    main()
