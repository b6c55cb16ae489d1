"""Steps of PEFT's LoRA-FA optimizer over the tiny BERT of text_classification.py.

    lora_fa.py [--out tests/golden/lora-fa]

The numbers belong to tests/golden/text-classification/encoder and its adapter-init. `steps` has PEFT's own epsilon of 1e-6, and `exact` one of
1e-30, with which its AdamW takes the steps of torch.optim.AdamW. Needs requirements.txt.
"""
import argparse
import pathlib

from common import GOLDEN, fresh, save_tensors, versions, write_json
from text_classification import adapted, tensors, trained

RATE, STEPS = 2e-3, 8
CASES = {"steps": 1e-6, "exact": 1e-30}


def main():
    import torch
    from peft.optimizers import create_lorafa_optimizer
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "lora-fa")
    out = fresh(parser.parse_args().out)
    losses = {}
    for name, epsilon in CASES.items():
        model = adapted(["classifier", "pooler"], torch.float64)
        config = model.peft_config["default"]
        optimizer = create_lorafa_optimizer(model, r=config.r, lora_alpha=config.lora_alpha, lr=RATE)
        for group in optimizer.param_groups:
            group["eps"] = epsilon
        own = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model(**tensors()).loss
            loss.backward()
            optimizer.step()
            own.append(loss.item())
        losses[name] = own
        if name == "exact":
            save_tensors(out / "after.safetensors", {n: p.detach() for n, p in trained(model).items()})
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "peft"), "learningRate": RATE, "losses": losses})
    print(losses)


if __name__ == "__main__":
    main()
