"""Gradients and steps of PEFT's methods over the tiny BERT of text_classification.py: DoRA, rsLoRA with patterns of ranks.

    training_methods.py [--out tests/golden/training-methods]

The numbers belong to tests/golden/text-classification/encoder. Needs requirements.txt.
"""
import argparse
import pathlib

import torch

from common import GOLDEN, fresh, save_tensors, versions, write_json
from text_classification import adapted, tensors, trained

RATE, STEPS = 2e-3, 10
SAVED = ["classifier", "pooler"]
CASES = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "rank_pattern": {"query": 5, "layer.1.output.dense": 2}, "alpha_pattern": {"value": 3}},
}


def numbers(out, options):
    narrow, wide = adapted(SAVED, **options), adapted(SAVED, torch.float64, **options)
    narrow.peft_config["default"].base_model_name_or_path = "tiny-bert"
    narrow.save_pretrained(out / "adapter-init")
    (out / "adapter-init" / "README.md").unlink(missing_ok=True)
    parameters = trained(wide)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "training-methods")
    out = fresh(parser.parse_args().out)
    losses = {name: numbers(fresh(out / name), options) for name, options in CASES.items()}
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "peft"), "learningRate": RATE, "losses": losses})
    print(losses)


if __name__ == "__main__":
    main()
