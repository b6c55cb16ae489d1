"""Adapters of every kind that PEFT's LoRA saves, on three models of a few kB, and what PEFT makes of them.

    peft_kinds.py [--out tests/golden/kinds]

For each case: the folder as PEFT writes it; expected.json with each layer's numbers and the number of trained parameters;
tensors.safetensors with the merged model's tensors that differ from the base's, and inputs and outputs of adapted modules. All are
computed in float64 from the folder as PEFT loads it again, and rounded to float32.
"""
import argparse
import copy
import pathlib

import torch
from torch import nn

import packed
from common import GOLDEN, adapt, save_adapter, save_tensors, versions, write_json

SEED = 23
RANKS = {"r": 3, "lora_alpha": 5, "rank_pattern": {"k_proj": 2, "down_proj": 4}, "alpha_pattern": {"down_proj": 7}}
LINEARS = ["q_proj", "k_proj", "down_proj"]
GPT = {"r": 3, "lora_alpha": 5, "rank_pattern": {"c_fc": 2}, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc"]}
CONV = {"r": 4, "lora_alpha": 6, "rank_pattern": {"three": 2}, "alpha_pattern": {"patch": 3}, "task_type": None,
        "target_modules": ["one", "two", "patch", "point", "three", "linear"]}

CASES = {  # case: (model, LoraConfig, options of save_pretrained)
    "linear": ("qwen2", {**RANKS, "target_modules": LINEARS}, {}),
    "dora": ("qwen2", {**RANKS, "target_modules": LINEARS, "use_dora": True}, {}),
    "dora-rslora": ("qwen2", {**RANKS, "target_modules": LINEARS, "use_dora": True, "use_rslora": True}, {}),
    "lora-bias": ("qwen2", {**RANKS, "target_modules": ["q_proj", "k_proj"], "lora_bias": True}, {}),
    "bias-all": ("qwen2", {**RANKS, "target_modules": ["q_proj", "down_proj"], "bias": "all"}, {}),
    "bias-lora-only": ("qwen2", {**RANKS, "target_modules": ["q_proj", "down_proj"], "bias": "lora_only"}, {}),
    "modules-to-save": ("qwen2", {**RANKS, "target_modules": LINEARS, "modules_to_save": ["lm_head", "model.norm"]}, {}),
    "tokens": ("qwen2", {**RANKS, "target_modules": LINEARS, "trainable_token_indices": [31, 2, 17]}, {}),
    "tokens-of": ("qwen2", {**RANKS, "target_modules": LINEARS, "trainable_token_indices": {"embed_tokens": [4, 1], "lm_head": [30]}}, {}),
    "embedding": ("qwen2", {**RANKS, "target_modules": ["embed_tokens", "q_proj"]}, {"save_embedding_layers": False}),
    "embedding-saved": ("qwen2", {**RANKS, "target_modules": ["embed_tokens", "q_proj"]}, {}),
    "embedding-dora": ("qwen2", {**RANKS, "target_modules": ["embed_tokens", "q_proj"], "use_dora": True}, {"save_embedding_layers": False}),
    "all-together": ("qwen2", {**RANKS, "target_modules": LINEARS, "use_dora": True, "bias": "all", "modules_to_save": ["lm_head"],
                               "trainable_token_indices": [5]}, {}),
    "conv1d": ("gpt2", GPT, {}),
    "conv1d-dora": ("gpt2", {**GPT, "use_dora": True}, {}),
    "conv1d-bias": ("gpt2", {**GPT, "bias": "lora_only"}, {}),
    "conv1d-lora-bias": ("gpt2", {**GPT, "lora_bias": True}, {}),
    "convolution": ("convolutions", CONV, {}),
    "convolution-dora": ("convolutions", {**CONV, "use_dora": True}, {}),
    "convolution-bias": ("convolutions", {**CONV, "bias": "lora_only", "use_rslora": True}, {}),
    "convolution-lora-bias": ("convolutions", {**CONV, "lora_bias": True}, {}),
    "convolution-dilated": ("convolutions", {**CONV, "target_modules": ["dilated"]}, {}),
    "convolution-groups": ("convolutions", {**CONV, "target_modules": ["groups", "depthwise"]}, {}),
    "convolution-groups-dora": ("convolutions", {**CONV, "target_modules": ["groups", "depthwise"], "use_dora": True}, {}),
    "convolution-groups-lora-bias": ("convolutions", {**CONV, "target_modules": ["groups", "depthwise"], "lora_bias": True}, {}),
}


INPUTS = {"one": (2, 4, 9), "two": (2, 3, 8, 7), "patch": (2, 3, 8, 12), "point": (1, 8, 3, 4), "three": (1, 2, 4, 5, 4), "dilated": (2, 4, 9),
          "groups": (2, 4, 6, 5), "depthwise": (1, 4, 8)}


class Convolutions(nn.Module):
    """Modules alone: adapters never run the model."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(4, 6, 3, stride=2, padding=1)
        self.two = nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0))
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.point = nn.Conv2d(8, 6, 1)
        self.three = nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=1)
        self.dilated = nn.Conv1d(4, 4, 3, padding="same", dilation=2)
        self.groups = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.depthwise = nn.Conv1d(4, 8, 3, groups=4)
        self.linear = nn.Linear(6, 5)


def build(name):
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(SEED)
    if name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
                                             num_key_value_heads=1, head_dim=6, max_position_embeddings=32, tie_word_embeddings=False))
    elif name == "convolutions":
        model = Convolutions()
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=12, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=False))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model.eval()


def move(adapted, generator):
    """What training would move, away from where it starts."""
    with torch.no_grad():
        for key, p in adapted.named_parameters():
            if p.requires_grad and "lora_A" not in key and not ("lora_B" in key and key.endswith(".weight")):
                p.add_(0.2 * torch.randn(p.shape, generator=generator))


@torch.no_grad()
def layers(adapted, generator):
    """Numbers of each layer, and inputs and outputs without the base's bias."""
    numbers, tensors = [], {}
    for name, module in adapted.base_model.model.named_modules():
        embedding = "default" in getattr(module, "lora_embedding_A", {})
        if not embedding and "default" not in getattr(module, "lora_A", {}):
            continue
        a = module.lora_embedding_A["default"] if embedding else module.lora_A["default"].weight
        b = module.lora_embedding_B["default"] if embedding else module.lora_B["default"].weight
        base = module.get_base_layer()
        is_convolution = a.dim() > 2
        a2, b2 = a.flatten(1), b.flatten(1)
        if is_convolution and base.groups > 1:  # each group's outputs see its own rows of A
            b2 = torch.block_diag(*b2.chunk(base.groups))
        numbers.append({"name": name, "kind": "embedding" if embedding else "convolution" if is_convolution else "linear", "d": b2.shape[0],
                        "k": a2.shape[1], "rank": module.r["default"], "alpha": module.lora_alpha["default"],
                        "scaling": module.scaling["default"], "normDelta": (module.scaling["default"] * b2 @ a2).norm().item()})
        if embedding:
            x = torch.tensor([3, 0, 31, 3])
            y = module(x)
        elif is_convolution:
            numbers[-1] |= {"stride": base.stride, "padding": base.padding, "dilation": base.dilation, "groups": base.groups}
            x = torch.randn(INPUTS[name], generator=generator).double()
            y = module(x) - base.bias.view(-1, *[1] * (a.dim() - 2))
        else:
            x = torch.randn(3, a.shape[1], generator=generator).double()
            bias = getattr(base, "bias", None)
            y = module(x) - (0 if bias is None else bias)
        tensors |= {f"input.{name}": x, f"output.{name}": y}
    return numbers, tensors


def make(name, out):
    from peft import PeftModel
    base, config, options = CASES[name]
    generator = torch.Generator().manual_seed(SEED)
    adapted = adapt(build(base), SEED, 0.3, name=f"tiny-{base}", **config)
    if "embed_tokens" in config["target_modules"]:
        with torch.no_grad():
            for key, p in adapted.named_parameters():
                if "lora_embedding_A" in key:
                    p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    move(adapted, generator)
    save_adapter(adapted, out, **options)
    again = PeftModel.from_pretrained(build(base), out).eval().double()
    numbers, tensors = layers(again, generator)
    original = build(base).double().state_dict()
    try:
        merged = copy.deepcopy(again).merge_and_unload().state_dict()
    except NotImplementedError:  # PEFT cannot merge where there are groups
        assert "groups" in name
        merged = original
    assert merged.keys() == original.keys()
    tensors |= {f"merged.{k}": v for k, v in merged.items() if not torch.equal(v, original[k])}
    save_tensors(out / "tensors.safetensors", tensors)
    write_json(out / "expected.json", {"versions": versions("torch", "transformers", "peft"), "base": base, "trainableParams": trained,
                                       "layers": numbers})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "kinds")
    out = parser.parse_args().out
    for base in ("qwen2", "gpt2", "convolutions"):
        save_tensors(out / f"{base}.safetensors", build(base).state_dict())
    for name in CASES:
        make(name, out / name)
    packed.pack(out, "kinds")


if __name__ == "__main__":
    main()
