#!/usr/bin/env python3
"""A small vision transformer and pictures for bench/learning.mjs: handwritten digits, the public data of scikit-learn.

    digits.py CSV DIR [--swap]      CSV: digits.csv.gz, of scikit-learn's package: sklearn/datasets/data

The model learns to tell the digits 0 to 4 apart, and is exported without its head: DIR/config.json, preprocessor_config.json and onnx/model.onnx.
DIR/rows.jsonl has the pictures of the digits 5 to 9, in the order of the data. --swap: the model learns those from 5 to 9, and the rows have the others. Needs scripts/golden/requirements-optimum.txt.
"""
import json, pathlib, sys

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

SIDE, LEARNED, EPOCHS = 8, 5, 12


def pixels(pictures):
    """As the model takes them: gray values from 0 to 255 in three channels, from -1 to 1."""
    x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, SIDE, SIDE) / 127.5 - 1
    return x.expand(-1, 3, -1, -1)


def pretrain(pictures, labels):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=SIDE, patch_size=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=LEARNED, attn_implementation="eager"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = pixels(pictures), torch.tensor(labels)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(32):
            optimizer.zero_grad()
            loss = model(pixel_values=x[rows], labels=y[rows]).loss
            loss.backward()
            optimizer.step()
    print(f"loss on the digits that it learns: {loss.item():.4f}")
    return model.eval()


class Hidden(ViTModel):
    """No wrapper: its name would stand in front of the names of the modules."""

    def forward(self, pixel_values):
        return super().forward(pixel_values=pixel_values).last_hidden_state


def main():
    table, folder = np.loadtxt(sys.argv[1], delimiter=",").astype(int), pathlib.Path(sys.argv[2])
    # 16 gray values, from paper to ink.
    pictures, labels = np.rint(table[:, :-1] * 255 / 16).astype(np.uint8), table[:, -1]
    is_learned = (labels >= LEARNED) if "--swap" in sys.argv else (labels < LEARNED)
    model = pretrain(pictures[is_learned], labels[is_learned] % LEARNED)
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    model.vit.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("id2label", "label2id")}, indent=1) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "rescale_factor": 1 / 255, "size": {"height": SIDE, "width": SIDE}, "resample": 2}) + "\n")
    hidden = Hidden(model.config, add_pooling_layer=False).eval()
    hidden.load_state_dict(model.vit.state_dict())
    torch.onnx.export(hidden, (torch.randn(2, 3, SIDE, SIDE),), str(folder / "onnx" / "model.onnx"),
                      input_names=["pixel_values"], output_names=["last_hidden_state"], opset_version=17, dynamo=False,
                      dynamic_axes={"pixel_values": {0: "batch_size"}, "last_hidden_state": {0: "batch_size"}})
    with open(folder / "rows.jsonl", "w") as file:
        for picture, label in zip(pictures[~is_learned], labels[~is_learned]):
            image = {"data": picture.tolist(), "width": SIDE, "height": SIDE}
            file.write(json.dumps({"image": image, "label": f"digit {label}"}) + "\n")


if __name__ == "__main__":
    main()
