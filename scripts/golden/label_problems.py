"""PyTorch's losses for several labels, numbers, class weights and label smoothing over the tiny BERT of text_classification.py.

    label_problems.py [--out tests/golden/label-problems]

The numbers belong to tests/golden/text-classification/encoder and its adapter-init. Needs requirements.txt.
"""
import argparse
import pathlib

import torch

from common import GOLDEN, fresh, save_tensors, versions, write_json
from text_classification import LABELS, ROWS, adapted, tensors, trained

SEVERAL = [["calm"], ["glad", "sad"], [], ["calm", "glad", "sad"], ["sad"], ["glad"]]
NUMBERS = [0.5, -1.25, 3.0, 0.0, 2.5, 1.0]
WEIGHTS = {"calm": 0.5, "glad": 2.0, "sad": 1.5}
SMOOTHING = 0.2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "label-problems")
    out = fresh(parser.parse_args().out)
    targets = torch.tensor([[float(label in row) for label in LABELS] for row in SEVERAL], dtype=torch.float64)
    numbers = torch.tensor(NUMBERS, dtype=torch.float64)
    ids = torch.tensor([LABELS.index(row["label"]) for row in ROWS])
    weights = torch.tensor([WEIGHTS[label] for label in LABELS], dtype=torch.float64)
    counts = torch.bincount(ids, minlength=3).double()
    losses = {
        "several": lambda x: torch.nn.BCEWithLogitsLoss()(x, targets),
        "number": lambda x: torch.nn.MSELoss()(x[:, 0], numbers),
        "weights": lambda x: torch.nn.CrossEntropyLoss(weight=weights)(x, ids),
        "balanced": lambda x: torch.nn.CrossEntropyLoss(weight=len(ids) / (3 * counts))(x, ids),
        "smoothing": lambda x: torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)(x, ids),
        "both": lambda x: torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=SMOOTHING)(x, ids),
    }
    inputs = {name: rows for name, rows in tensors().items() if name != "labels"}
    values, gradients = {}, {}
    for name, loss_of in losses.items():
        model = adapted(["classifier", "pooler"], torch.float64)
        loss = loss_of(model(**inputs).logits)
        loss.backward()
        values[name] = loss.item()
        wanted = ["classifier.weight", "bert.pooler.dense.weight", "layer.0.attention.self.query.lora_A.weight"]
        for parameter, p in trained(model).items():
            if any(parameter.endswith(ending) for ending in wanted):
                gradients[f"{name}/{parameter}"] = p.grad[:1] if name == "number" and "classifier" in parameter else p.grad
    save_tensors(out / "gradients.safetensors", gradients)
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft"), "several": SEVERAL, "numbers": NUMBERS, "weights": WEIGHTS,
        "smoothing": SMOOTHING, "losses": values})
    print(values)


if __name__ == "__main__":
    main()
