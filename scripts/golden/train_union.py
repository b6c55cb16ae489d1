"""Golden training numbers of PEFT + PyTorch on union-3m: losses, gradients and ten AdamW steps, in float64.

    train_union.py [--out tests/golden/train-union]

Writes golden.json, adapter-init/ (B not zero), adapter-zero/ (PEFT's start), gradients-{0,1}.safetensors and
adapter-final.safetensors (adapter-init after ten steps). ../../tests/golden/README.md explains the fields.
"""
import argparse
import pathlib

import torch

from common import (ADAMW, GOLDEN, LLAMA_LINEARS, adamw, adapt, correct_of, fresh, gradients, loss_of, make_batches, save_adapter,
                    save_tensors, trainable, union, versions, worst_gradient_error, write_json)

CONFIG = {"r": 4, "lora_alpha": 8, "target_modules": LLAMA_LINEARS}
SEED, STEPS = 8, 10  # a seed whose first gradients are all far from zero: Adam turns a wrong sign into a wrong step


def start(b_std, wide):
    model = adapt(union(), SEED, b_std, **CONFIG)
    return model.double() if wide else model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "train-union")
    out = fresh(parser.parse_args().out)
    batches = make_batches()
    save_adapter(start(0.02, False), out / "adapter-init")
    save_adapter(start(0, False), out / "adapter-zero")

    wide, narrow = start(0.02, True), start(0.02, False)
    loss = [loss_of(wide, b).item() for b in batches]
    correct = [correct_of(wide, b) for b in batches]
    deviation = {"loss": max(abs(loss_of(narrow, b).item() / x - 1) for b, x in zip(batches, loss))}
    grads = [gradients(wide, b) for b in batches[:2]]
    deviation["gradients"] = max(worst_gradient_error(g, gradients(narrow, b)) for g, b in zip(grads, batches))
    for i, g in enumerate(grads):
        save_tensors(out / f"gradients-{i}.safetensors", g)

    losses, norms = adamw(wide, batches, STEPS)
    narrow_losses, narrow_norms = adamw(narrow, batches, STEPS)
    save_tensors(out / "adapter-final.safetensors", trainable(wide))
    after, narrow_after = trainable(wide), trainable(narrow)
    deviation["adamwLosses"] = max(abs(a - b) for a, b in zip(losses, narrow_losses))
    deviation["gradNorms"] = max(abs(b / a - 1) for a, b in zip(norms, narrow_norms))
    deviation["adapterFinal"] = max((after[k] - narrow_after[k]).abs().max().item() for k in after)

    zero_losses, zero_norms = adamw(start(0, True), batches, STEPS)
    narrow_losses, _ = adamw(start(0, False), batches, STEPS)
    deviation["adamwLossesZeroB"] = max(abs(a - b) for a, b in zip(zero_losses, narrow_losses))
    base = union().double()
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft"),
        "seed": SEED,
        "adamw": ADAMW,
        "baseLoss": [loss_of(base, b).item() for b in batches],
        "loss": loss,
        "correct": correct,
        "adamwLosses": losses,
        "gradNorms": norms,
        "adamwLossesZeroB": zero_losses,
        "gradNormsZeroB": zero_norms,
        "float32Deviation": deviation,
        "batches": batches,
    })


if __name__ == "__main__":
    main()
