"""Loads an adapter with a new head that lowrank wrote (reverse.mjs) in real PEFT, on a classifier whose own head is another one.

    check_head.py ADAPTER [--tolerance 1e-5]

PEFT must have a place for every tensor, and compute what the base computes with the adapter's numbers put into its weights by hand.
Prints one JSON document; exit code 1 if anything differs.
"""
import argparse
import json
import pathlib
import sys
import warnings

import torch

from check_reverse import check_file, check_keys

PREFIX = "base_model.model."


def base_model():
    from transformers import BertConfig, BertForSequenceClassification
    torch.manual_seed(3)
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                        max_position_embeddings=16, num_labels=3)
    return BertForSequenceClassification(config).eval()


@torch.no_grad()
def by_hand(tensors, config):
    model = base_model()
    weights = dict(model.named_parameters())
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            delta = tensors[f"{PREFIX}{module}.lora_B.weight"] @ value
            weights[f"{module}.weight"] += config["lora_alpha"] / config["r"] * delta
        elif name in weights:
            weights[name].copy_(value)
    return model


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=pathlib.Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    from peft import PeftModel
    problems = []
    tensors = check_file(args.adapter / "adapter_model.safetensors", problems)
    config = json.loads((args.adapter / "adapter_config.json").read_text(encoding="utf8"))
    if "classifier" not in (config["modules_to_save"] or []):
        problems.append(f"modules_to_save is {config['modules_to_save']}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(base_model(), args.adapter).eval()
    problems += [str(w.message) for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message).lower()]
    check_keys(adapted, tensors, problems)
    inputs = {"input_ids": torch.tensor([[1, 5, 9, 2], [3, 8, 4, 7]]), "token_type_ids": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])}
    base, expected, got = (model(**inputs).logits for model in (base_model(), by_hand(tensors, config), adapted))
    error, change = (got - expected).abs().max().item(), (got - base).abs().max().item()
    if not error <= args.tolerance:
        problems.append(f"logits differ by {error:.3g}, which is above {args.tolerance}")
    if not change > 0.1:
        problems.append(f"the adapter changes the logits by {change:.3g} alone")
    print(json.dumps({"ok": not problems, "tensors": len(tensors), "error": error, "problems": problems}, indent=2))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
