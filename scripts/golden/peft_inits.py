"""PEFT's initializations: first factors with the draws they came from, and adapters whose start changed the base weights.

    peft_inits.py [--out tests/golden/inits]

`first.safetensors`: A, B and the base weight after PEFT made a layer, by case and module. `<case>/`: an adapter folder that PEFT wrote
after A and B had moved, `tensors.safetensors` with the merged model's tensors as PEFT has them after loading it again (in float32, as
its decompositions need, then float64), and the delta of PEFT's own conversion to plain LoRA.
"""
import argparse
import contextlib
import copy
import json
import pathlib
import tempfile

import torch

import packed
from common import GOLDEN, adapt, fresh, save_adapter, save_tensors, versions, write_json
from peft_kinds import build

SEED = 29
LINEARS = ["q_proj", "k_proj", "down_proj"]
PLAIN = {"r": 3, "lora_alpha": 5, "target_modules": LINEARS}
PATTERNS = {"rank_pattern": {"k_proj": 2, "layers.0.mlp.down_proj": 5}, "alpha_pattern": {"down_proj": 7, "0.self_attn.q_proj": 2}}
GPT = {"r": 3, "lora_alpha": 5, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc"]}

FIRST = {  # case: LoraConfig
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa-niter-2": {"init_lora_weights": "pissa_niter_2"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
}

TRAINED = {  # case: (model, LoraConfig, whether PEFT converts it)
    "pissa": ("qwen2", {**PLAIN, "init_lora_weights": "pissa"}, True),
    "pissa-patterns": ("qwen2", {**PLAIN, **PATTERNS, "init_lora_weights": "pissa"}, True),
    "pissa-rslora-patterns": ("qwen2", {**PLAIN, **PATTERNS, "use_rslora": True, "init_lora_weights": "pissa"}, False),
    "pissa-dora": ("qwen2", {**PLAIN, "use_dora": True, "init_lora_weights": "pissa"}, False),
    "pissa-embedding": ("qwen2", {**PLAIN, "target_modules": ["embed_tokens", "q_proj"], "init_lora_weights": "pissa"}, False),
    "pissa-embedding-alone": ("qwen2", {**PLAIN, "target_modules": ["embed_tokens"], "init_lora_weights": "pissa"}, False),
    "pissa-wide": ("qwen2", {**PLAIN, "r": 8, "init_lora_weights": "pissa"}, False),
    "olora-wide-rslora": ("qwen2", {**PLAIN, "r": 8, "use_rslora": True, "init_lora_weights": "olora"}, False),
    "pissa-conv1d": ("gpt2", {**GPT, "init_lora_weights": "pissa"}, True),
    "olora": ("qwen2", {**PLAIN, "init_lora_weights": "olora"}, True),
    "olora-rslora": ("qwen2", {**PLAIN, "use_rslora": True, "init_lora_weights": "olora"}, True),
}


@contextlib.contextmanager
def recorded():
    """What torch.randn gives meanwhile."""
    original, draws = torch.randn, []

    def randn(*args, **kwargs):
        draws.append(original(*args, **kwargs))
        return draws[-1]

    torch.randn = randn
    try:
        yield draws
    finally:
        torch.randn = original


def first(case, changes):
    model, tensors = build("qwen2"), {}
    with recorded() as draws:
        adapted = adapt(model, SEED, 0, **{**PLAIN, "layers_to_transform": [0], **changes})
    at = 0
    for name, module in adapted.base_model.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        tensors |= {f"{case}.{name}.A": module.lora_A["default"].weight, f"{case}.{name}.B": module.lora_B["default"].weight,
                    f"{case}.{name}.base": module.get_base_layer().weight}
        count = {"pissa-niter-2": 1, "orthogonal": 3}.get(case, 0)
        for i, draw in enumerate(draws[at:at + count]):
            tensors[f"{case}.{name}.draw{i}"] = draw
        at += count
    assert at in (0, len(draws)), (case, at, len(draws))
    return tensors


def trained(case, out):
    from peft import PeftModel
    base, config, converts = TRAINED[case]
    generator = torch.Generator().manual_seed(SEED)
    adapted = adapt(build(base), SEED, 0, name=f"tiny-{base}", **config)
    with tempfile.TemporaryDirectory() as folder:
        initial, plain = f"{folder}/initial", pathlib.Path(folder) / "plain"
        if converts:
            adapted.save_pretrained(initial)
        with torch.no_grad():
            for key, p in adapted.named_parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn(p.shape, generator=generator))
        save_adapter(adapted, out, save_embedding_layers=False)
        again = PeftModel.from_pretrained(build(base), out).eval().double()
        scalings = {n: m.scaling["default"] for n, m in again.base_model.model.named_modules() if hasattr(m, "lora_A")}
        original = build(base).double().state_dict()
        merged = copy.deepcopy(again).merge_and_unload().state_dict()
        adapted_names = {f"{n}.weight" for n in scalings}
        tensors = {f"merged.{k}": v for k, v in merged.items() if k in adapted_names}
        others = [k for k, v in merged.items() if k not in adapted_names and not torch.equal(v, original[k])]
        assert not others, others
        expected = {"versions": versions("torch", "transformers", "peft"), "base": base, "plain": None}
        if converts:
            adapted.save_pretrained(plain, path_initial_model_for_weight_conversion=initial)
            saved = json.loads((plain / "adapter_config.json").read_text())
            expected["plain"] = {k: saved[k] for k in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights")}
            check = PeftModel.from_pretrained(build(base), plain).eval()
            for name, module in check.base_model.model.named_modules():
                if hasattr(module, "lora_A"):
                    tensors[f"plain.{name}"] = module.get_delta_weight("default")
    save_tensors(out / "tensors.safetensors", tensors)
    write_json(out / "expected.json", expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "inits")
    out = parser.parse_args().out
    fresh(out)
    tensors = {}
    for case, changes in FIRST.items():
        tensors |= first(case, changes)
    save_tensors(out / "first.safetensors", tensors)
    for case in TRAINED:
        trained(case, out / case)
    packed.pack(out, "inits")


if __name__ == "__main__":
    main()
