"""Loads classifiers that lowrank trained on AutoModelForSequenceClassification and AutoModelForTokenClassification, in real PEFT, and
compares logits.

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

import decoder_classification as decoder
import encoder_families as families
import fused_encoders as fused
import text_classification as golden
import token_classification as tokens
from check_reverse import check_keys
from exporters import build as build_decoder

TOLERANCE = 1e-4
METHODS = ["dora", "bias", "bias-of-lora", "saved"]


def check(folder, source, auto, batch):
    from peft import PeftModel
    problems = []
    written = json.loads((folder / "logits.json").read_text(encoding="utf8"))
    with tempfile.TemporaryDirectory() as base:
        source.save_pretrained(base)
        model = auto.from_pretrained(base, num_labels=len(written["labels"]), attn_implementation="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()
    problems += [str(w.message) for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message).lower()]
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        missed = []
        check_keys(adapted, {key: file.get_tensor(key) for key in file.keys()}, missed)
    # With bias "all" PEFT saves the biases of modules_to_save twice, and those of the base's modules in their place.
    problems += [one for one in missed if not (one.startswith("the file lacks") and one.endswith("bias") and (
        ".modules_to_save." in one or ".original_module." in one))]
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = adapted(**batch).logits
    if logits.dim() == 3:  # those of the words alone
        logits = logits[labels >= 0]
    error = (logits - torch.tensor(written["logits"])).abs().max().item()
    if not error <= TOLERANCE:
        problems.append(f"logits differ by {error}")
    return {"error": error, "problems": problems}


def letters(folder):
    """The rows of texts that reverse_classifier.mjs wrote."""
    rows = json.loads((folder / "logits.json").read_text(encoding="utf8"))["rows"]
    encode = golden.tokenizer()
    encode.enable_padding(pad_id=0)
    made = encode.encode_batch([row["text"] for row in rows])
    return {"input_ids": torch.tensor([r.ids for r in made]), "attention_mask": torch.tensor([r.attention_mask for r in made]),
            "labels": torch.tensor([golden.LABELS.index(row["label"]) for row in rows])}


def main():
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
    folder = pathlib.Path(sys.argv[1])
    model = golden.build()
    cases = {
        **{name: (model.bert, AutoModelForSequenceClassification, golden.tensors()) for name in METHODS},
        "encoder": (model.bert, AutoModelForSequenceClassification, golden.tensors()),
        "classifier": (model, AutoModelForSequenceClassification, golden.tensors()),
        "new-head": (model, AutoModelForSequenceClassification, golden.tensors()),
        "decoder": (build_decoder("llama"), AutoModelForSequenceClassification, decoder.tensors()),
        "modernbert-norms": (fused.build("modernbert"), AutoModelForSequenceClassification, letters(folder / "modernbert-norms")),
        "tokens": (model.bert, AutoModelForTokenClassification, tokens.tensors()),
        "tokens-distilbert": (tokens.build("distilbert"), AutoModelForTokenClassification, tokens.tensors()),
    }
    for name, family in families.FAMILIES.items():
        families.use(family)
        encoder = getattr(golden.build(), family["encoder"])
        cases[name] = (encoder, AutoModelForSequenceClassification, golden.tensors())
        cases[f"{name}-tokens"] = (encoder, AutoModelForTokenClassification, tokens.tensors())
    result = {name: check(folder / name, *case) for name, case in cases.items()}
    print(json.dumps(result, indent=2))
    sys.exit(1 if any(part["problems"] for part in result.values()) else 0)


if __name__ == "__main__":
    main()
