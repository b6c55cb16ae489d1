"""Merges by the command line, loaded again: transformers finds every tensor, and each is what PEFT's merged model has.

    check_loads.py [NAME …]     after npm run build; the cases are those of names.py and heads.py
"""
import argparse
import copy
import pathlib
import subprocess
import tempfile

import torch
from safetensors.torch import save_file

import heads
import names
from common import GOLDEN, REPO

CLI = REPO / "dist" / "cli" / "main.js"


def check(folder, name):
    import transformers
    from peft import PeftModel
    transformers.utils.logging.disable_progress_bar()
    if folder == "heads":
        base, cls, task = heads.CASES[name][:3]
        model = names.small(getattr(transformers, base), None)
        config = copy.deepcopy(model.config)
        config.num_labels = 2 if task == "QUESTION_ANS" else 3
    else:
        cls = names.CASES[name][0]
        model = names.small(getattr(transformers, cls), names.SMALLER.get(name))
        config = copy.deepcopy(model.config)
    cls = getattr(transformers, cls)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(f"{scratch}/base")
        tensors = {key: names.values(key, value.shape) if value.is_floating_point() else value for key, value in names.read(f"{scratch}/base").items()}
        save_file(tensors, f"{scratch}/base/model.safetensors", metadata={"format": "pt"})
        adapter = GOLDEN / folder / name / "adapter"
        subprocess.run(["node", CLI, "merge", "--base", f"{scratch}/base", "--adapter", adapter, "--out", f"{scratch}/merged"], check=True, capture_output=True)
        wanted = PeftModel.from_pretrained(cls.from_pretrained(f"{scratch}/base", config=config), adapter).merge_and_unload().state_dict()
        own = {} if folder == "heads" else {"config": copy.deepcopy(model.config)}
        got, info = cls.from_pretrained(f"{scratch}/merged", output_loading_info=True, **own)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    worst = max((got.state_dict()[key].double() - value.double()).abs().max().item() for key, value in wanted.items() if value.is_floating_point())
    assert worst < 1e-5, worst
    print(f"{folder}/{name}: all of {len(wanted)} tensors, within {worst:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    cases = [("names", name) for name in names.CASES if name not in names.PARTS] + [("heads", name) for name in heads.CASES if name != "bert"]
    for folder, name in cases:
        if not args.names or name in args.names:
            check(folder, name)


if __name__ == "__main__":
    main()
