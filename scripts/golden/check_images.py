"""Loads classifiers of pictures that lowrank trained on AutoModelForImageClassification, in real PEFT, and compares logits.

    check_images.py FOLDER

FOLDER: what reverse_classifier.mjs wrote. Needs what image_classification.py needs. Prints one JSON document; exit code 1 if anything differs.
"""
import json
import pathlib
import sys

import fused_encoders as fused
import image_classification as golden
from check_classifier import check


def main():
    from transformers import AutoModelForImageClassification
    folder = pathlib.Path(sys.argv[1])
    result = {}
    for kind in golden.KINDS:
        for name in (kind, f"{kind}-bias", f"{kind}-norms"):
            base = fused.build(kind) if name.endswith("norms") else golden.build(kind).base_model
            result[name] = check(folder / name, base, AutoModelForImageClassification, golden.tensors(kind))
    print(json.dumps(result, indent=2))
    sys.exit(1 if any(part["problems"] for part in result.values()) else 0)


if __name__ == "__main__":
    main()
