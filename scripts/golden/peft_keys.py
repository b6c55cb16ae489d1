"""Adapters whose tensors have other names than PEFT's save_pretrained gives.

    peft_keys.py [--out tests/golden/keys]

raw: a PEFT model's own state dict, as training loops save it that know nothing of PEFT. twice: of a PEFT model in a PEFT model.
"""
import argparse
import pathlib
import shutil
import tempfile

import torch
from safetensors.torch import save_file

from common import GOLDEN, fill_b, fresh
from peft_kinds import build

SEED = 5


def raw(out):
    from peft import PeftModel
    adapted = PeftModel.from_pretrained(build("qwen2"), GOLDEN / "kinds" / "all-together")
    parts = ("lora_", "modules_to_save", "trainable_tokens_delta", ".bias")
    tensors = {k: v.clone().contiguous() for k, v in adapted.state_dict().items() if any(part in k for part in parts)}
    save_file(tensors, fresh(out / "raw") / "adapter_model.safetensors")
    shutil.copy(GOLDEN / "kinds" / "all-together" / "adapter_config.json", out / "raw")


def twice(out):
    from peft import LoraConfig, get_peft_model
    inner = get_peft_model(build("qwen2"), LoraConfig(target_modules=["q_proj"]))
    outer = get_peft_model(inner, LoraConfig(r=2, target_modules=["k_proj"]), adapter_name="outer")
    fill_b(outer, SEED, 0.3)
    with tempfile.TemporaryDirectory() as temporary:
        outer.save_pretrained(temporary, selected_adapters=["outer"], save_embedding_layers=False)
        shutil.copytree(pathlib.Path(temporary) / "outer", fresh(out / "twice"), dirs_exist_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "keys")
    out = fresh(parser.parse_args().out)
    torch.manual_seed(SEED)
    raw(out)
    twice(out)
    for file in out.glob("*/*"):  # safetensors writes files that only their owner reads
        file.chmod(0o644)


if __name__ == "__main__":
    main()
