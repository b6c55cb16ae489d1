"""PEFT's LoraConfig: its fields, and adapters whose fields change what a folder means for the base.

    peft_config.py [--out tests/golden/config] [--table src/peft/gen/default-targets.ts]

fields.json: the dataclass's fields with their defaults as JSON. tied-*: adapters of a model with tied embeddings and
ensure_weight_tying; replication: layer_replication. Of each: the folder as PEFT writes it, expected.json, and tensors.safetensors
with inputs and outputs of adapted modules, or the merged model's tensors that differ from the base's, in float64 rounded to float32.
The table is TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.
"""
import argparse
import dataclasses
import json
import pathlib

import torch

import packed
from common import GOLDEN, REPO, adapt, call, fresh, save_adapter, save_tensors, versions, write_json

SEED = 31
CONFIG = {"r": 2, "lora_alpha": 5}
TIED = {  # PEFT names the embedding again, with its whole name, in lists that mean it
    "tied-embedding": {**CONFIG, "target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "tied-modules": {**CONFIG, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tied-tokens": {**CONFIG, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [5, 3]},
                    "ensure_weight_tying": True},
    "tied-dora": {**CONFIG, "target_modules": ["embed_tokens", "q_proj"], "use_dora": True, "ensure_weight_tying": True},
}
RANGES = [[0, 2], [1, 3], [0, 1]]


def build(layers=1, tied=True):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=6, num_hidden_layers=layers, num_attention_heads=2,
                                         num_key_value_heads=1, head_dim=4, max_position_embeddings=16, tie_word_embeddings=tied))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
    return model.eval()


def fields():
    from peft import LoraConfig
    out = {}
    for field in dataclasses.fields(LoraConfig):
        value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        out[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return out


@torch.no_grad()
def move(adapted):
    """What training would move, away from where it starts."""
    generator = torch.Generator().manual_seed(SEED)
    for key, p in adapted.named_parameters():
        if "lora_embedding_A" in key or "trainable_tokens" in key or "modules_to_save" in key and "lm_head" not in key:
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        if "magnitude" in key:
            p.add_(0.2 * torch.randn(p.shape, generator=generator))


def tied(name, out):
    from peft import PeftModel
    adapted = adapt(build(), SEED, 0.3, name="tiny-llama", **TIED[name])
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    move(adapted)
    save_adapter(adapted, out, save_embedding_layers=False)
    again = PeftModel.from_pretrained(build(), out).eval().double()
    original = build().double().state_dict()
    inner = again.base_model.model
    embedding = inner.model.embed_tokens
    q_proj = inner.model.layers[0].self_attn.q_proj
    stays_tied = not TIED[name].get("use_dora")  # its magnitudes are columns of the one and rows of the other
    if stays_tied:
        merged = {"model.layers.0.self_attn.q_proj.weight": q_proj.weight + q_proj.get_delta_weight("default")}
    else:
        merged = {f"{key}.weight": inner.get_submodule(key)(torch.eye(8).double()).T for key in ("model.layers.0.self_attn.q_proj", "lm_head")}
    tokens = torch.arange(16)
    merged["model.embed_tokens.weight"] = embedding(tokens)
    plain = build(tied=stays_tied).double()
    plain.load_state_dict({**original, "lm_head.weight": embedding(tokens), **merged})
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == stays_tied
    ids = torch.tensor([[3, 5, 1, 14]])
    expected = call(again, input_ids=ids).logits
    error = (call(plain, input_ids=ids).logits - expected).abs().max() / expected.abs().max()
    assert error < 1e-12, (name, error)
    save_tensors(out / "tensors.safetensors", {f"merged.{k}": v for k, v in merged.items()})
    write_json(out / "expected.json", {"versions": versions("torch", "transformers", "peft"), "trainableParams": trained})


@torch.no_grad()
def replication(out):
    from peft import PeftModel
    adapted = adapt(build(3), SEED, 0.3, name="tiny-llama", **CONFIG, target_modules=["q_proj", "down_proj"], layer_replication=RANGES)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    save_adapter(adapted, out)
    again = PeftModel.from_pretrained(build(3), out).eval().double()
    generator = torch.Generator().manual_seed(SEED)
    tensors, bases = {}, {}
    original = build(3).double().state_dict()
    for name, module in again.base_model.model.named_modules():
        if "default" in getattr(module, "lora_A", {}):
            x = torch.randn(2, module.in_features, generator=generator).double()
            tensors |= {f"input.{name}": x, f"output.{name}": module(x)}
            bases[name] = [key[:-len(".weight")] for key, value in original.items() if torch.equal(value, module.base_layer.weight)]
    assert all(len(names) == 1 for names in bases.values())
    save_tensors(out / "tensors.safetensors", tensors)
    write_json(out / "expected.json", {"versions": versions("torch", "transformers", "peft"), "trainableParams": trained,
                                       "bases": {name: names[0] for name, names in bases.items()}})


def table():
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as mapping
    lines = ["// Generated by scripts/golden/peft_config.py from peft " + versions("peft")["peft"] + ": what PEFT adapts by the model's type.", "",
             "/** model_type of config.json → target_modules. */",
             "export const DEFAULT_TARGETS: Readonly<Record<string, readonly string[] | string>> = " + json.dumps(mapping, indent=2), ""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "config")
    parser.add_argument("--table", type=pathlib.Path, default=REPO / "src" / "lora" / "gen" / "default-targets.ts")
    args = parser.parse_args()
    out = fresh(args.out)
    write_json(out / "fields.json", {"versions": versions("peft"), "fields": fields()})
    for layers in (1, 3):
        values = build(layers).state_dict()
        del values["lm_head.weight"]
        save_tensors(out / f"base-{layers}.safetensors", values)
    for name in TIED:
        tied(name, out / name)
    replication(out / "replication")
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(table(), encoding="utf8")
    packed.pack(out, "config")


if __name__ == "__main__":
    main()
