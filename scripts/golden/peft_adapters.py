"""Adapter folders as PEFT writes them for union-3m, with what PEFT computes from them, and folders to refuse.

    peft_adapters.py [--out tests/golden/peft] [CASE …]

expected.json of a case that loads: prompts with logits, and rank, alpha, scaling and the delta's norm of each layer, all
read from the adapter as PEFT loads it again. Of a case to refuse: the config field that must be named.
"""
import argparse
import json
import math
import pathlib
import shutil

import torch

from common import (GOLDEN, adapt, fill_b, fresh, logits_summary, save_adapter, save_tensors, union, versions, write_json)

SEED = 11
PROMPTS = [[0, 54, 260, 1356, 270, 262, 520, 455], [0, 463, 262, 1405, 268, 1102, 1621, 271, 289]]
QV = ["q_proj", "v_proj"]
ONE = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "layers_to_transform": [0]}
REGEX_KEYS = {
    "rank_pattern": {"layers\\.0\\.self_attn\\.q_proj": 2, "layers\\.[02]\\.self_attn\\.(k|v)_proj": 3, "q_proj": 6, "v_proj": 5},
    "alpha_pattern": {".*1\\.self_attn\\.[qk]_proj": 12, "k_proj": 5, "layers.0.self_attn.v_proj": 7, "q_proj": 3},
}
HALF_BASE = r".*\.layers\.[024]\.(self_attn\.(q|o)_proj|mlp\.down_proj)"

LOADS = {  # case: LoraConfig
    "f32": {"r": 4, "lora_alpha": 8, "target_modules": QV},
    "f16": {"r": 4, "lora_alpha": 8, "target_modules": QV},
    "bf16": {"r": 4, "lora_alpha": 8, "target_modules": QV},
    "rslora": {"r": 4, "lora_alpha": 6, "target_modules": QV, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj"], "layers_to_transform": [0, 1, 2], **REGEX_KEYS},
    "patterns-rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj"], "layers_to_transform": [0, 1, 2],
                        "use_rslora": True, **REGEX_KEYS},
    "patterns-order": {"r": 4, "lora_alpha": 8, "target_modules": QV, "layers_to_transform": [0, 1],
                       "alpha_pattern": {"q_proj": 24, "layers.0.self_attn.q_proj": 2}},
    "regex": {"r": 2, "lora_alpha": 5, "target_modules": HALF_BASE},
    "layers": {"r": 2, "lora_alpha": 4, "target_modules": ["o_proj", "up_proj", "gate_proj"], "exclude_modules": ["layers.3.mlp.up_proj"],
               "layers_to_transform": [1, 3], "layers_pattern": "layers"},
    "pissa": {**ONE, "init_lora_weights": "pissa"},
    "olora": {**ONE, "init_lora_weights": "olora"},
    "high-rank": {"r": 100, "lora_alpha": 100, "target_modules": ["k_proj"], "layers_to_transform": [2]},
}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def layers(adapted):
    """What PEFT holds for each adapted layer."""
    out = []
    for name, module in adapted.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b, scaling = module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"]
            out.append({"name": name, "d": b.shape[0], "k": a.shape[1], "rank": module.r["default"],
                        "alpha": module.lora_alpha["default"], "scaling": scaling,
                        "normDelta": (scaling * b.double() @ a.double()).norm().item()})
    return out


def reload(folder, base):
    from peft import PeftModel
    return PeftModel.from_pretrained(base, folder).eval().double()


def loads(name, config, out):
    adapted = adapt(union(), SEED, 0.1, **config)
    made = layers(adapted)
    if name in DTYPES:
        for key, p in adapted.named_parameters():
            if "lora_" in key:
                p.data = p.data.to(DTYPES[name])
    save_adapter(adapted, out)
    again = reload(out, union())
    found = layers(again)
    differ = [(a["name"], a["alpha"], b["alpha"]) for a, b in zip(made, found) if (a["rank"], a["alpha"]) != (b["rank"], b["alpha"])]
    if differ:
        print(f"{name}: alpha before saving and after loading differ: {differ}")
    write_json(out / "expected.json", {
        "versions": versions("torch", "transformers", "peft"),
        "layers": found,
        "prompts": logits_summary(again, PROMPTS),
        "base": logits_summary(union().double(), PROMPTS),
    })


# ---------------------------------------------------------------- cases to refuse

def one(**changes):
    """One adapted layer with a setting that changes what the weights mean."""
    def make(out):
        save_adapter(adapt(union(), SEED, 0.1, **{**ONE, **changes}), out)
    return make


def loftq(out):
    """LoftQ needs bitsandbytes to make; the folder differs from a plain one by its config alone."""
    one()(out)
    config = json.loads((out / "adapter_config.json").read_text())
    config |= {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def other(make_config):
    """An adapter that is no LoRA."""
    def make(out):
        from peft import get_peft_model
        model = union()
        model.name_or_path = "union-3m"
        torch.manual_seed(SEED)
        save_adapter(get_peft_model(model, make_config()), out)
    return make


def ia3():
    from peft import IA3Config
    return IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])


def prefix():
    from peft import PrefixTuningConfig
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


REFUSED = {  # case: (field to name, how to make it)
    "loftq": ("init_lora_weights", loftq),
    "ia3": ("peft_type", other(ia3)),
    "prefix": ("peft_type", other(prefix)),
}


def initialization(path):
    """Bounds and deviations of PEFT's fresh A, by layer."""
    out = {"versions": versions("torch", "peft")}
    for init in (True, "gaussian"):
        adapted = adapt(union(), SEED, 0, r=8, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=init)
        rows = []
        for name, module in adapted.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                rows.append({"name": name, "r": a.shape[0], "k": a.shape[1], "maxAbs": a.abs().max().item(),
                             "std": a.std().item(), "maxAbsB": b.abs().max().item()})
        expected = [{"bound": 1 / math.sqrt(w["k"]), "std": 1 / math.sqrt(3 * w["k"])} if init is True else {"std": 1 / w["r"]} for w in rows]
        out["kaimingUniform" if init is True else "gaussian"] = [{**w, "expected": e} for w, e in zip(rows, expected)]
    write_json(path, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "peft")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    args = parser.parse_args()
    for name in args.cases or [*LOADS, *REFUSED]:
        if name in LOADS:
            loads(name, LOADS[name], args.out / name)
        else:
            field, make = REFUSED[name]
            make(args.out / name)
            write_json(args.out / name / "expected.json", {"versions": versions("torch", "transformers", "peft"), "refuse": field})
    if not args.cases:
        initialization(args.out / "init.json")


if __name__ == "__main__":
    main()
