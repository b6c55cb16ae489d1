"""Loads encoder-decoders that lowrank trained on AutoModelForSeq2SeqLM, in real PEFT, and compares logits and a written text.

    check_seq2seq.py FOLDER

FOLDER: what reverse_seq2seq.mjs wrote. Prints one JSON document; exit code 1 if anything differs.
"""
import json
import pathlib
import sys
import tempfile

import torch
from safetensors import safe_open

from check_reverse import check_keys
from common import UNION
from graphs import MODELS, build

TOLERANCE = 1e-4


def check(name, folder):
    from peft import PeftModel
    from tokenizers import Tokenizer
    from transformers import AutoModelForSeq2SeqLM
    written = json.loads((folder / "logits.json").read_text(encoding="utf8"))
    with tempfile.TemporaryDirectory() as base:
        build(MODELS[name][0]).save_pretrained(base)
        model = AutoModelForSeq2SeqLM.from_pretrained(base)
    adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()
    problems = []
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        check_keys(adapted, {key: file.get_tensor(key) for key in file.keys()}, problems)
    error = 0.0
    with torch.no_grad():
        for i, (labels, logits) in enumerate(zip(written["labels"], written["logits"])):
            made = adapted(input_ids=torch.tensor([written["inputIds"][i]]), labels=torch.tensor([labels])).logits
            error = max(error, (made.flatten() - torch.tensor(logits)).abs().max().item())
        if not error <= TOLERANCE:
            problems.append(f"logits differ by {error}")
        tokenizer = Tokenizer.from_file(str(UNION / "tokenizer.json"))
        ids = torch.tensor([tokenizer.encode(written["text"]).ids])
        made = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0]
    text = tokenizer.decode(made.tolist())
    if text != written["answer"]:
        problems.append(f"it writes {text!r}, and lowrank {written['answer']!r}")
    return {"error": error, "text": text, "problems": problems}


def main():
    folder = pathlib.Path(sys.argv[1])
    result = {name: check(name, folder / name) for name in ("t5", "bart")}
    print(json.dumps(result, indent=2))
    sys.exit(1 if any(part["problems"] for part in result.values()) else 0)


if __name__ == "__main__":
    main()
