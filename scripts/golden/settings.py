"""Settings that PEFT takes although they look wrong or do nothing: adapters on a tiny Llama, and the weights that PEFT gives when it loads them again.

    settings.py [--out tests/golden/settings]

base.json: as that of names.py. Each case: adapter/, and merged.safetensors with W + s·B·A of each adapted layer, by PEFT.
"""
import argparse
import json
import pathlib
import tempfile

import torch
from safetensors.torch import save_file

import names
import packed
from common import GOLDEN, fill_b, fresh, save_tensors, write_json

TARGETS = {"target_modules": ["q_proj"]}
# Case → settings beside r and lora_alpha, or others in their place
CASES = {
    "alpha-0": {"lora_alpha": 0},
    "alpha-negative": {"lora_alpha": -4},
    "alpha-pattern-0": {"alpha_pattern": {r".*\.1\.self_attn\.q_proj": 0}},
    "dropout-1": {"lora_dropout": 1.0},
    "layers-pattern-empty": {"layers_pattern": "", "layers_to_transform": [1]},
    "tokens-empty": {"trainable_token_indices": []},
    "tokens-empty-by-module": {"trainable_token_indices": {}},
    "tokens-empty-of-module": {"trainable_token_indices": {"embed_tokens": []}},
    "velora": {"velora_config": {"num_groups": 4}},
}
# Written into adapter_config.json afterwards: PEFT passes over what it does not know.
EDITS = {"unknown-key": {"a_field_of_tomorrow": {"on": True}}}


def make(name, out, model):
    from peft import LoraConfig, PeftModel, get_peft_model
    torch.manual_seed(names.SEED)
    settings = {"r": 2, "lora_alpha": 3, **TARGETS, **CASES.get(name, {})}
    if "velora_config" in settings:
        from peft.tuners.lora.config import VeloraConfig
        settings["velora_config"] = VeloraConfig(**settings["velora_config"])
    adapted = get_peft_model(model(), LoraConfig(**settings))
    fill_b(adapted, names.SEED, 0.3)
    fresh(out)
    names.save(adapted, out / "adapter")
    file = out / "adapter" / "adapter_config.json"
    if name in EDITS:
        config = json.loads(file.read_text(encoding="utf8"))
        file.write_text(json.dumps({**config, **EDITS[name]}, indent=2), encoding="utf8")
    loaded = PeftModel.from_pretrained(model(), out / "adapter")
    merged = {}
    with torch.no_grad():
        for key, module in loaded.base_model.model.named_modules():
            if key.endswith(".q_proj"):
                # Not merge_and_unload: that fails where there is an empty list of tokens.
                merged[f"{key}.weight"] = module.weight + module.get_delta_weight("default") if hasattr(module, "lora_A") else module.weight
    save_tensors(out / "merged.safetensors", merged)
    print(name, sorted(file.name for file in (out / "adapter").iterdir()))


def main():
    import transformers
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "settings")
    out = parser.parse_args().out
    cls = transformers.LlamaForCausalLM
    with tempfile.TemporaryDirectory() as scratch:
        names.small(cls, None).save_pretrained(scratch)
        base = {key: names.values(key, value.shape) for key, value in names.read(scratch).items()}
        save_file(base, f"{scratch}/model.safetensors", metadata={"format": "pt"})
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "base.json", {"config": {"model_type": "llama", "tie_word_embeddings": False},
                                       "tensors": {key: list(value.shape) for key, value in base.items()}})
        for name in [*CASES, *EDITS]:
            make(name, out / name, lambda: cls.from_pretrained(scratch))
    packed.pack(out, "settings")


if __name__ == "__main__":
    main()
