"""Loads every adapter that reverse_conformance.mjs wrote in real PEFT, and compares each module's output with the golden one.

    check_conformance.py DIR [--tolerance 1e-5]

Prints one JSON document; exit code 1 if an adapter is missing, has a tensor that PEFT has no place for, or computes something else.
"""
import argparse
import json
import pathlib
import re
import sys
import warnings

import torch
from safetensors.torch import load_file

from common import GOLDEN, REPO
from check_reverse import check_file, check_keys
from conformance import describe, double_inits, lora_modules
from conformance_cells import OPTIONS, SEED, build

CELLS = GOLDEN / "conformance"


def is_expected(problem, cell):
    """
    Not in PEFT's file either (save_embedding_layers=False), or one of its copies of trained biases, which nothing reads; or in
    its file too (save_embedding_layers=True): a weight of the base, which it loads without listing it among the adapter's.
    """
    if re.fullmatch(r"the file lacks .*(\.base_layer\.weight|\.(modules_to_save|original_module)\..*bias)", problem):
        return True
    extra = re.fullmatch(r"PEFT has no place for (.*)", problem)
    file = cell / "adapter" / "adapter_model.safetensors"
    return extra is not None and file.exists() and extra[1] in load_file(file)


def check(arch, name, folder, problems):
    """Largest error of an output over that output's largest value."""
    from peft import PeftModel
    option = OPTIONS[name]
    own = []
    base = build(arch, option.tied)
    if option.dtype is not None:
        base = base.to(option.dtype)
    tensors = check_file(folder / "adapter_model.safetensors", own)
    if name in ("init-pissa", "init-olora"):  # as the golden outputs were made
        with double_inits():
            adapted = PeftModel.from_pretrained(base.double(), folder).eval()
    else:
        adapted = PeftModel.from_pretrained(base, folder).eval()
    check_keys(adapted, tensors, own)
    own = [problem for problem in own if not is_expected(problem, CELLS / arch / name)]
    golden = load_file(CELLS / arch / name / "tensors.safetensors")
    expected = json.loads((CELLS / arch / name / "expected.json").read_text(encoding="utf8"))
    norms = {layer["name"]: layer["normDelta"] for layer in expected["layers"]}
    generator = torch.Generator().manual_seed(SEED)
    worst = 0.0
    for key, module in lora_modules(adapted.double(), "default"):
        numbers, values = describe(key, module, "default", generator)
        norm = norms[numbers["name"]]  # all that a parameter has, which is no module
        worst = max(worst, abs(numbers["normDelta"] - norm) / norm)
        for tensor in (k for k in values if k.startswith("output.")):
            expected = golden[tensor].double()
            worst = max(worst, ((values[tensor] - expected).abs().max() / expected.abs().max()).item())
    problems += [f"{arch} {name}: {problem}" for problem in own]
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    matrix = json.loads((CELLS / "matrix.json").read_text(encoding="utf8"))
    refused = json.loads((args.folder / "refused.json").read_text(encoding="utf8"))
    problems, errors = [], {}
    for arch in matrix["architectures"]:
        for name in matrix["options"]:
            if "refused" in json.loads((CELLS / arch / name / "expected.json").read_text(encoding="utf8")) or f"{arch} × {name}" in refused:
                continue
            try:
                errors[f"{arch} × {name}"] = check(arch, name, args.folder / arch / name, problems)
            except Exception as error:
                problems.append(f"{arch} {name}: {type(error).__name__}: {error}")
    known = int(re.search(r"(\d+) by lowrank \(L\)", (REPO / "docs" / "conformance.md").read_text(encoding="utf8"))[1])
    if len(refused) != known:
        problems.append(f"lowrank refuses {len(refused)} adapters, {known} by docs/conformance.md: {refused}")
    problems += [f"{cell}: {error:.3g} is above {args.tolerance}" for cell, error in errors.items() if not error <= args.tolerance]
    print(json.dumps({"ok": not problems, "adapters": len(errors), "error": max(errors.values(), default=None), "problems": problems}, indent=2))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
