"""Loads an adapter that lowrank wrote in real PEFT, on the same base, and compares logits.

    check_reverse.py ADAPTER LOGITS.json [--base union-3m|llama|qwen2|gpt2] [--merged DIR] [--tolerance 1e-4]

LOGITS.json: {"prompts": [{"inputIds": [...], "logits": [...], "logitIds": [...]}]}, the logits of the last position as
lowrank computed them; without logitIds all of the vocabulary. --base: union-3m, or a tiny model of exporters.py.
--merged: a folder with config.json and model.safetensors that lowrank merged; its logits must be the same too.
Prints one JSON document; exit code 1 if anything differs.
"""
import argparse
import json
import pathlib
import sys
import warnings

import torch
from safetensors import safe_open

import exporters
from common import call, union


def base_model(name):
    return union() if name == "union-3m" else exporters.build(name)


def check_file(path, problems):
    """Every tensor of a file, read by Hugging Face's safetensors."""
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("format") != "pt":
            problems.append(f"{path.name}: metadata has no format pt")
        tensors = {k: file.get_tensor(k) for k in file.keys()}
    for key, value in tensors.items():
        if not torch.isfinite(value.float()).all():
            problems.append(f"{path.name}: {key} is not finite")
    return tensors


def check_keys(adapted, tensors, problems):
    """PEFT passes over unexpected keys in silence, so compare the sets."""
    from peft import get_peft_model_state_dict
    held = get_peft_model_state_dict(adapted)
    problems += [f"PEFT has no place for {k}" for k in tensors.keys() - held.keys()]
    problems += [f"the file lacks {k}" for k in held.keys() - tensors.keys()]
    problems += [f"{k} changed on loading" for k in held.keys() & tensors.keys() if not torch.equal(held[k].float(), tensors[k].float())]


@torch.no_grad()
def worst(model, prompts):
    error = 0.0
    for prompt in prompts:
        logits = call(model, input_ids=torch.tensor([prompt["inputIds"]])).logits[0, -1].float()
        if "logitIds" in prompt:
            logits = logits[prompt["logitIds"]]
        ours = torch.tensor(prompt["logits"])
        if ours.shape != logits.shape:
            raise SystemExit(f"{ours.numel()} logits given, {logits.numel()} expected")
        error = max(error, (logits - ours).abs().max().item())
    return error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=pathlib.Path)
    parser.add_argument("logits", type=pathlib.Path)
    parser.add_argument("--base", default="union-3m", choices=["union-3m", *exporters.BASES])
    parser.add_argument("--merged", type=pathlib.Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    from peft import PeftModel
    problems, caught = [], []
    prompts = json.loads(args.logits.read_text(encoding="utf8"))["prompts"]
    tensors = check_file(args.adapter / "adapter_model.safetensors", problems)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(base_model(args.base), args.adapter).eval()
    problems += [str(w.message) for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message).lower()]
    check_keys(adapted, tensors, problems)
    result = {"tensors": len(tensors), "prompts": len(prompts), "error": worst(adapted, prompts)}
    if args.merged:
        from transformers import AutoModelForCausalLM
        check_file(args.merged / "model.safetensors", problems)
        merged = AutoModelForCausalLM.from_pretrained(args.merged, attn_implementation="eager", dtype=torch.float32).eval()
        result["mergedError"] = worst(merged, prompts)
    problems += [f"{k} {v:.3g} is above {args.tolerance}" for k, v in result.items() if "rror" in k and not v <= args.tolerance]
    print(json.dumps({"ok": not problems, **result, "problems": problems}, indent=2))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
