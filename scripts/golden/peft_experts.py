"""Adapters of parameters (PEFT's target_parameters) on small mixtures of experts, and what PEFT makes of them.

    peft_experts.py [--out tests/golden/experts]

For each model: fused.safetensors, its parameters as transformers holds them; and, where transformers saves experts one by one,
saved.safetensors, for each case too, of the merged model. For each case: the folder as PEFT writes it; expected.json with each parameter's numbers; tensors.safetensors with
what PEFT's merge changes, inputs of experts and what goes through them. Computed in float64 from the folder as PEFT loads it again,
and rounded to float32.
"""
import argparse
import pathlib
import tempfile

import torch
from safetensors.torch import load_file

import packed
from common import GOLDEN, adapt, fresh, save_adapter, save_tensors, versions, write_json

SEED = 29
COMMON = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
          "max_position_embeddings": 16, "tie_word_embeddings": False}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LLAMA4 = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]

CASES = {  # case: (model, LoraConfig)
    "mixtral": ("mixtral", {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"], "target_parameters": EXPERTS,
                            "rank_pattern": {"down_proj": 3}, "alpha_pattern": {r"experts\.gate_up_proj": 7}}),
    "mixtral-down": ("mixtral", {"r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": ["mlp.experts.down_proj", "mlp.gate.weight"],
                                 "use_rslora": True}),
    "mixtral-bare": ("mixtral", {"r": 1, "lora_alpha": 3, "target_modules": "all-linear", "target_parameters": ["down_proj", "gate_up_proj"]}),
    "mixtral-linear": ("mixtral", {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], "target_parameters": ["self_attn.k_proj.weight"]}),
    "qwen3-moe": ("qwen3-moe", {"r": 2, "lora_alpha": 5, "target_modules": ["v_proj"], "target_parameters": EXPERTS}),
    "gpt-oss": ("gpt-oss", {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"], "target_parameters": EXPERTS, "rank_pattern": {"down_proj": 3}}),
    "gpt-oss-down": ("gpt-oss", {"r": 2, "lora_alpha": 5, "target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    "gpt-oss-all": ("gpt-oss", {"r": 2, "lora_alpha": 5, "target_modules": [],
                                "target_parameters": [*EXPERTS, "mlp.experts.down_proj_bias", "mlp.experts.gate_up_proj_bias"]}),
    "llama4": ("llama4", {"r": 2, "lora_alpha": 5, "target_modules": [], "target_parameters": LLAMA4}),
}


def build(name):
    import transformers as t
    torch.manual_seed(SEED)
    if name == "mixtral":
        model = t.MixtralForCausalLM(t.MixtralConfig(**COMMON, intermediate_size=10, num_local_experts=3, num_experts_per_tok=2))
    elif name == "qwen3-moe":
        model = t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**COMMON, intermediate_size=12, moe_intermediate_size=6, num_experts=4, num_experts_per_tok=2))
    elif name == "gpt-oss":  # hidden and intermediate size are equal, as in the published ones
        model = t.GptOssForCausalLM(t.GptOssConfig(**COMMON, intermediate_size=8, num_local_experts=3, num_experts_per_tok=2))
    else:
        model = t.Llama4ForCausalLM(t.Llama4TextConfig(**COMMON, intermediate_size=6, intermediate_size_mlp=10, num_local_experts=3,
                                                       num_experts_per_tok=1, interleave_moe_layer_step=1, pad_token_id=0))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape))
    return model.eval()


def wrappers(adapted):
    """(module, parameter, ParamWrapper), the innermost first."""
    found = []
    for name, module in adapted.base_model.model.named_modules():
        if type(module).__name__ == "ParamWrapper":
            found.append((name.replace(".base_layer", ""), module.parameter_name, module))
    return found[::-1]


@torch.no_grad()
def parameters(adapted, merged, generator):
    """Numbers of each parameter, and inputs and outputs of its experts as linear layers."""
    numbers, tensors = [], {}
    for module, parameter, wrapper in wrappers(adapted):
        name = f"{module}.{parameter}"
        a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
        delta = wrapper.get_delta_weight("default")
        shape = list(delta.shape)
        is_transposed = delta.dim() == 3 and shape[1] == a.shape[1] and (shape[1] != shape[2] or wrapper.get_base_layer().is_transposed)
        numbers.append({"name": name, "experts": wrapper.num_experts, "d": b.shape[0], "k": a.shape[1], "rank": wrapper.r["default"],
                        "alpha": wrapper.lora_alpha["default"], "scaling": wrapper.scaling["default"], "normDelta": delta.norm().item(),
                        "shape": shape, "isInputMajor": is_transposed})
        weight = merged[name] if delta.dim() == 3 else merged[name][None]
        x = torch.randn(2, a.shape[1], generator=generator).double()
        tensors[f"input.{name}"] = x
        tensors[f"output.{name}"] = torch.stack([x @ (w if is_transposed else w.T) for w in weight])
    return numbers, tensors


def make(name, out):
    from peft import PeftModel
    base, config = CASES[name]
    generator = torch.Generator().manual_seed(SEED)
    adapted = adapt(build(base), SEED, 0.3, name=f"tiny-{base}", **config)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    save_adapter(adapted, out)
    again = PeftModel.from_pretrained(build(base), out).eval().double()
    original = build(base).double().state_dict()
    merged = {k: v.clone() for k, v in original.items()}
    for module, parameter, wrapper in wrappers(again):
        merged[f"{module}.{parameter}"] += wrapper.get_delta_weight("default")
    numbers, tensors = parameters(again, merged, generator)
    model = again.merge_and_unload()
    real = model.state_dict()
    assert real.keys() == original.keys()
    for parameter in numbers:
        assert torch.equal(real[parameter["name"]], merged[parameter["name"]]), parameter
    tensors |= {f"merged.{k}": v for k, v in real.items() if not torch.equal(v, original[k])}
    save_tensors(out / "tensors.safetensors", tensors)
    if (out.parent / f"{base}-base" / "saved.safetensors").exists():
        save_tensors(out / "saved.safetensors", saved(model)[0])
    write_json(out / "expected.json", {"versions": versions("torch", "transformers", "peft"), "base": base, "trainableParams": trained,
                                       "parameters": numbers})


def saved(model):
    """What transformers writes: tensors and config.json."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(pathlib.Path(folder) / "model.safetensors"), (pathlib.Path(folder) / "config.json").read_text()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "experts")
    out = parser.parse_args().out
    fresh(out)
    for base in sorted({base for base, _ in CASES.values()}):
        model = build(base)
        folder = out / f"{base}-base"
        save_tensors(folder / "fused.safetensors", model.state_dict())
        tensors, config = saved(model)
        if tensors.keys() != model.state_dict().keys():
            save_tensors(folder / "saved.safetensors", tensors)
        (folder / "config.json").write_text(config)
    for name in CASES:
        make(name, out / name)
    packed.pack(out, "experts")


if __name__ == "__main__":
    main()
