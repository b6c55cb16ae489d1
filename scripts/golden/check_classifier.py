"""Loads classifiers that lowrank trained on AutoModelForSequenceClassification, in real PEFT, and compares logits.

    check_classifier.py FOLDER

FOLDER: what reverse_classifier.mjs wrote. Prints one JSON document; exit code 1 if anything differs.
"""
import json
import pathlib
import sys
import tempfile
import warnings

import torch
from safetensors import safe_open

import text_classification as golden
from check_reverse import check_keys

TOLERANCE = 1e-4


def check(folder, source):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification
    problems = []
    written = json.loads((folder / "logits.json").read_text(encoding="utf8"))
    with tempfile.TemporaryDirectory() as base:
        source.save_pretrained(base)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(written["labels"]), attn_implementation="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()
    problems += [str(w.message) for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message).lower()]
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        check_keys(adapted, {key: file.get_tensor(key) for key in file.keys()}, problems)
    inputs = {name: rows for name, rows in golden.tensors().items() if name != "labels"}
    with torch.no_grad():
        error = (adapted(**inputs).logits - torch.tensor(written["logits"])).abs().max().item()
    if not error <= TOLERANCE:
        problems.append(f"logits differ by {error}")
    return {"error": error, "problems": problems}


def main():
    folder = pathlib.Path(sys.argv[1])
    model = golden.build()
    result = {name: check(folder / name, source) for name, source in [("encoder", model.bert), ("classifier", model)]}
    print(json.dumps(result, indent=2))
    sys.exit(1 if any(part["problems"] for part in result.values()) else 0)


if __name__ == "__main__":
    main()
