"""Gradients and steps of PEFT's methods over the tiny BERT of text_classification.py: DoRA, DoRA with given dropout masks, rsLoRA with
patterns of ranks, trained biases, trained modules. And the defaults of PEFT and transformers.

    training_methods.py [--out tests/golden/training-methods]

The numbers belong to tests/golden/text-classification/encoder. Needs requirements.txt.
"""
import argparse
import pathlib

import torch

import packed
from common import GOLDEN, fresh, save_tensors, versions, write_json
from text_classification import SEED, adapted, tensors, trained

RATE, STEPS = 2e-3, 10
SAVED = ["classifier", "pooler"]
DROPOUT = 0.25
CASES = {
    "dora": {"use_dora": True},
    "dora-dropout": {"use_dora": True, "lora_dropout": DROPOUT},
    "bias-all": {"bias": "all"},
    "bias-lora-only": {"bias": "lora_only"},
    "saved": {"saved": [*SAVED, "LayerNorm", "word_embeddings", "layer.1.intermediate.dense"]},
    "rslora": {"use_rslora": True, "rank_pattern": {"query": 5, "layer.1.output.dense": 2}, "alpha_pattern": {"value": 3}},
}


class Dropout(torch.nn.Module):
    """Inverted dropout with a mask that is known."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, x):
        return x * self.keep / (1 - DROPOUT)


def fix_masks(model):
    """Gives each adapted module a mask of its own. Returns the masks by the module's name."""
    from peft.tuners.lora import LoraLayer
    shape = tensors()["input_ids"].shape
    generator = torch.Generator().manual_seed(SEED + 2)
    masks = {}
    for name, module in sorted((n, m) for n, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)):
        masks[name] = (torch.rand((*shape, module.in_features), generator=generator) >= DROPOUT).double()
        module.lora_dropout["default"] = Dropout(masks[name])
        module.train()
    return masks


def numbers(out, saved=SAVED, **options):
    narrow, wide = adapted(saved, **options), adapted(saved, torch.float64, **options)
    narrow.peft_config["default"].base_model_name_or_path = "tiny-bert"
    narrow.save_pretrained(out / "adapter-init")
    (out / "adapter-init" / "README.md").unlink(missing_ok=True)
    if "lora_dropout" in options:
        save_tensors(out / "masks.safetensors", fix_masks(wide))
    # With bias "all" PEFT lets those of modules train that nothing reads any more, because a trained copy has their place.
    parameters = {name: p for name, p in trained(wide).items() if ".original_module." not in name}
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = wide(**tensors()).loss
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            save_tensors(out / "gradients.safetensors", {name: p.grad for name, p in parameters.items()})
        optimizer.step()
    save_tensors(out / "after.safetensors", {name: p.detach() for name, p in parameters.items()})
    return losses


def defaults():
    """What PEFT's config and the Trainer of transformers take where nothing is said."""
    from peft import LoraConfig
    from transformers import TrainingArguments
    config, arguments = LoraConfig(), TrainingArguments()
    return {
        "versions": versions("transformers", "peft"),
        "LoraConfig": {k: getattr(config, k) for k in (
            "r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights", "bias", "use_rslora", "use_dora")},
        "TrainingArguments": {k: getattr(arguments, k) for k in (
            "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "warmup_steps",
            "weight_decay", "max_grad_norm", "seed", "adam_beta1", "adam_beta2", "adam_epsilon")}
        | {"lr_scheduler_type": str(arguments.lr_scheduler_type.value)},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "training-methods")
    out = fresh(parser.parse_args().out)
    write_json(out / "defaults.json", defaults())
    losses = {name: numbers(fresh(out / name), **options) for name, options in CASES.items()}
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft"), "learningRate": RATE, "dropout": DROPOUT, "losses": losses})
    print(losses)
    packed.pack(out, "training-methods")


if __name__ == "__main__":
    main()
