"""Steps of PEFT's LoRA+ optimizer over the tiny BERT of text_classification.py.

    lora_plus.py [--out tests/golden/lora-plus]

The numbers belong to tests/golden/text-classification/encoder and its adapter-init. Needs requirements.txt.
"""
import argparse
import pathlib

import torch

from common import GOLDEN, fresh, versions, write_json
from text_classification import adapted, tensors

RATE, RATIO, STEPS = 2e-3, 16.0, 5


def main():
    from peft.optimizers import create_loraplus_optimizer
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "lora-plus")
    out = fresh(parser.parse_args().out)
    losses = {}
    for ratio in [1.0, RATIO]:
        model = adapted(["classifier", "pooler"], torch.float64)
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=ratio, loraplus_weight_decay=0.0, weight_decay=0.0)
        own = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model(**tensors()).loss
            loss.backward()
            optimizer.step()
            own.append(loss.item())
        losses[str(int(ratio))] = own
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "peft"), "learningRate": RATE, "ratio": RATIO, "losses": losses})
    print(losses)


if __name__ == "__main__":
    main()
