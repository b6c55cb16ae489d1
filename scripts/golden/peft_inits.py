"""PEFT's initializations: first factors with the draws they came from, and adapters whose start changed the base weights.

    peft_inits.py [--out tests/golden/inits]

`first.safetensors`: A, B and the base weight after PEFT made a layer, by case and module. `<case>/`: an adapter folder that PEFT wrote
after A and B had moved, `tensors.safetensors` with the merged model's tensors as PEFT has them after loading it again (in float32, as
its decompositions need, then float64), and the delta of PEFT's own conversion to plain LoRA. `eva.safetensors`, `eva.json`: inputs of
layers and what EVA makes of them.
"""
import argparse
import contextlib
import copy
import dataclasses
import json
import pathlib
import sys
import tempfile
import types

import torch

import packed
from common import GOLDEN, adapt, fresh, save_adapter, save_tensors, versions, write_json
from peft_kinds import build

# CorDA takes its dataclass from attrs, which nothing else here needs.
sys.modules.setdefault("attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))

SEED = 29
LINEARS = ["q_proj", "k_proj", "down_proj"]
PLAIN = {"r": 3, "lora_alpha": 5, "target_modules": LINEARS}
PATTERNS = {"rank_pattern": {"k_proj": 2, "layers.0.mlp.down_proj": 5}, "alpha_pattern": {"down_proj": 7, "0.self_attn.q_proj": 2}}
GPT = {"r": 3, "lora_alpha": 5, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc"]}

FIRST = {  # case: (LoraConfig, settings of LoRA-GA)
    "pissa": ({"init_lora_weights": "pissa"}, None),
    "pissa-rslora": ({"init_lora_weights": "pissa", "use_rslora": True}, None),
    "pissa-niter-2": ({"init_lora_weights": "pissa_niter_2"}, None),
    "olora": ({"init_lora_weights": "olora"}, None),
    "mica": ({"init_lora_weights": "mica"}, None),
    "orthogonal": ({"init_lora_weights": "orthogonal", "r": 4}, None),
    "lora-ga": ({"init_lora_weights": "lora_ga"}, {}),
    "lora-ga-ArBr-unit": ({"init_lora_weights": "lora_ga"}, {"direction": "ArBr", "scale": "unit"}),
    "lora-ga-A2rBr-gd_scale": ({"init_lora_weights": "lora_ga"}, {"direction": "A2rBr", "scale": "gd_scale"}),
    "lora-ga-ArB2r-weight_svd": ({"init_lora_weights": "lora_ga"}, {"direction": "ArB2r", "scale": "weight_svd"}),
    "corda-ipm": ({"init_lora_weights": "corda"}, None),
    "corda-kpm": ({"init_lora_weights": "corda"}, None),
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


def targets(model):
    return {name: m for name, m in model.named_modules() if name.startswith("model.layers.0.") and name.split(".")[-1] in LINEARS}


def first(case, changes, loraga):
    from peft import LoraGAConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    model, tensors = build("qwen2"), {}
    config = {**PLAIN, "layers_to_transform": [0], **changes}
    generator = torch.Generator().manual_seed(SEED)
    if loraga is not None:
        config["lora_ga_config"] = LoraGAConfig(**loraga)
        for name, module in targets(model).items():
            module._peft_loraga_grad = 0.05 * torch.randn(module.weight.shape, generator=generator)
            tensors[f"{case}.{name}.gradient"] = module._peft_loraga_grad
    if case.startswith("corda"):
        from peft import LoraConfig
        config["corda_config"] = CordaConfig(corda_method=case.split("-")[1])
        inputs = {name: torch.randn(40, m.in_features, generator=generator) for name, m in targets(model).items()}
        tensors |= {f"{case}.{name}.inputs": x for name, x in inputs.items()}

        def run():
            for name, module in targets(model).items():
                for half in inputs[name].split(20):
                    module(half.unsqueeze(0))

        preprocess_corda(model, LoraConfig(**config), run_model=run)
    with recorded() as draws:
        adapted = adapt(model, SEED, 0, **config)
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


def loftq():
    """PEFT's loftq_init (utils/loftq_utils.py) with a grid of eighths for bitsandbytes' types, at a scaling of 1."""
    from peft.utils.loftq_utils import _low_rank_decomposition
    tensors = {}
    for name, module in targets(build("qwen2")).items():
        weight = module.weight.detach()
        rest = weight.clone()
        for iteration in range(3):
            quantized = torch.round(rest * 8) / 8
            out = _low_rank_decomposition(weight - quantized, reduced_rank=3)
            rest = weight - out["L"] @ out["R"]
            if iteration in (0, 2):
                tensors |= {f"loftq-{iteration + 1}.{name}.A": out["R"], f"loftq-{iteration + 1}.{name}.B": out["L"],
                            f"loftq-{iteration + 1}.{name}.base": quantized}
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


def eva(out):
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
    torch.manual_seed(SEED)
    model = build("qwen2")
    model.name_or_path = "tiny-qwen2"
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights="eva",
                        rank_pattern={"layers.1.mlp.down_proj": 4}, eva_config=EvaConfig(rho=2.0))
    adapted = get_peft_model(model, config)
    inputs = {}
    hooks = [m.register_forward_hook(lambda _m, x, _y, name=n: inputs.__setitem__(name, x[0].flatten(0, -2).detach().clone()))
             for n, m in adapted.base_model.model.named_modules() if hasattr(m, "lora_A")]
    batch = {"input_ids": torch.randint(0, 32, (6, 8))}
    adapted(**batch)
    for hook in hooks:
        hook.remove()
    before = {n for n, m in adapted.base_model.model.named_modules() if hasattr(m, "lora_A")}
    initialize_lora_eva_weights(adapted, [batch])
    tensors, layers = {f"inputs.{n}": x for n, x in inputs.items()}, []
    for name, module in adapted.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            tensors |= {f"A.{name}": module.lora_A["default"].weight}
            layers.append({"name": name, "rank": module.r["default"], "alpha": module.lora_alpha["default"]})
            assert module.lora_B["default"].weight.abs().max() == 0
    save_tensors(out / "eva.safetensors", tensors)
    config = adapted.peft_config["default"]
    write_json(out / "eva.json", {"versions": versions("torch", "transformers", "peft"), "layers": layers,
                                  "dropped": sorted(before - {l["name"] for l in layers}), "rankPattern": config.rank_pattern,
                                  "alphaPattern": config.alpha_pattern})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "inits")
    out = parser.parse_args().out
    fresh(out)
    tensors = {}
    for case, (changes, loraga) in FIRST.items():
        tensors |= first(case, changes, loraga)
    save_tensors(out / "first.safetensors", tensors | loftq())
    for case in TRAINED:
        trained(case, out / case)
    eva(out)
    packed.pack(out, "inits")


if __name__ == "__main__":
    main()
