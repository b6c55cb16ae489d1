"""Files by torch.save, with what torch reads from them, and files that must be refused.

    torch_files.py [--out tests/golden/torch]

expected.json: for each file that loads, its tensors (dtype and shape in safetensors' spelling, bytes in base64); for each that must not,
what the error must name. adapters/: folders by PEFT's save_pretrained(safe_serialization=False) of the cases of tests/golden/kinds, and other spellings of names.
"""
import argparse
import base64
import collections
import os
import pathlib
import shutil
import sys
import tempfile
import unittest.mock

import torch

from common import GOLDEN, fill_b, fresh, write_json
from peft_kinds import build

SEED = 5
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32",
          torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.uint16: "U16"}
ADAPTERS = ["linear", "all-together", "embedding"]


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def values():
    generator = torch.Generator().manual_seed(SEED)
    randn = lambda *shape: torch.randn(shape, generator=generator)
    base = randn(6, 5)
    shared = randn(24)
    return {
        "plain": {"lora_A": randn(2, 3), "lora_B": randn(4, 2)},
        "types": {str(t).removeprefix("torch."): (randn(3, 4) * 4).to(t) for t in DTYPES if t not in (torch.float8_e4m3fn, torch.uint16)},
        "types-v3": {"f8": randn(3, 4).to(torch.float8_e4m3fn), "u16": torch.arange(5).to(torch.uint16)},
        "views": {"transposed": base.t(), "slice": base[1:4, 2:], "row": base[3], "column": base[:, 1], "expanded": base[0].expand(3, 5),
                  "permuted": randn(2, 3, 4).permute(2, 0, 1), "empty": torch.empty(0, 4), "scalar": torch.tensor(7.5),
                  "narrow": base[:, :1], "half": base.half().t()},
        "shared": {"a": shared[:12].view(3, 4), "b": shared[12:].view(4, 3), "whole": shared, "again": shared},
        "parameters": {"w": torch.nn.Parameter(randn(2, 2)), "frozen": torch.nn.Parameter(randn(3), requires_grad=False)},
        "module": torch.nn.Linear(3, 2).state_dict(),
        "ordered": collections.OrderedDict(b=randn(1), a=randn(2)),
        "many": {f"l.{i}": shared[i % 24] for i in range(1100)},
    }


REFUSED = {  # case: (what is saved, what the error must name)
    "system": ({"x": Calls(os.system, "echo pwned")}, f"{os.name}.system"),
    "eval": ({"x": Calls(eval, "1")}, "__builtin__.eval"),
    "sparse": ({"x": torch.eye(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
    "quantized": ({"x": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "torch._utils._rebuild_qtensor"),
    "conjugate": ({"x": torch.complex(torch.ones(2), torch.ones(2)).conj()}, "conjugate"),
    "nested": ({"state_dict": {"x": torch.ones(2)}}, "state_dict"),
    "tensor": (torch.ones(2), "tensor"),
    "number": ({"x": torch.ones(1), "step": 3}, "step"),
    "module-object": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
}


def described(path):
    return {name: {"dtype": DTYPES[t.dtype], "shape": list(t.shape),
                   "data": base64.b64encode(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).decode()}
            for name, t in torch.load(path, weights_only=False).items()}


def save_all(out):
    loads, refused = {}, {}

    def save(name, value, **options):
        torch.save(value, out / name, **options)
        loads[name] = described(out / name)

    for name, value in values().items():
        save(f"{name}.bin", value)
    for protocol in (3, 4, 5):
        save(f"views-protocol-{protocol}.bin", values()["views"], pickle_protocol=protocol)
    torch.serialization.set_crc32_options(False)
    save("no-checksums.bin", values()["plain"])
    torch.serialization.set_crc32_options(True)
    for name, (value, named) in REFUSED.items():
        torch.save(value, out / f"{name}.bin")
        refused[f"{name}.bin"] = named
    torch.save(values()["plain"], out / "legacy.bin", _use_new_zipfile_serialization=False)
    refused["legacy.bin"] = "torch 1.6"
    with unittest.mock.patch.object(sys, "byteorder", "big"):
        torch.save(values()["plain"], out / "big.bin")
    refused["big.bin"] = "little-endian"
    return loads, refused


def save_adapters(out):
    from peft import PeftModel
    for case in ADAPTERS:
        adapted = PeftModel.from_pretrained(build("qwen2"), GOLDEN / "kinds" / case)
        config = adapted.peft_config["default"]
        config.target_modules = sorted(config.target_modules)
        config.base_model_name_or_path = "tiny-qwen2"
        adapted.save_pretrained(fresh(out / case), safe_serialization=False, save_embedding_layers=False)
        (out / case / "README.md").unlink(missing_ok=True)


def save_spellings(out):
    """raw: a PEFT model's own state dict, as training loops save it that know nothing of PEFT. strided: factors whose
    transposes are contiguous. twice: of a PEFT model in a PEFT model."""
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
    adapted = PeftModel.from_pretrained(build("qwen2"), GOLDEN / "kinds" / "all-together")
    parts = ("lora_", "modules_to_save", "trainable_tokens_delta", ".bias")
    folder = fresh(out / "raw")
    torch.save({k: v for k, v in adapted.state_dict().items() if any(part in k for part in parts)}, folder / "adapter_model.bin")
    shutil.copy(GOLDEN / "kinds" / "all-together" / "adapter_config.json", folder)

    # PEFT makes tensors contiguous for safetensors only.
    plain = PeftModel.from_pretrained(build("qwen2"), GOLDEN / "kinds" / "linear")
    folder = fresh(out / "strided")
    torch.save({k: v.t().contiguous().t() for k, v in get_peft_model_state_dict(plain).items()}, folder / "adapter_model.bin")
    shutil.copy(GOLDEN / "kinds" / "linear" / "adapter_config.json", folder)

    inner = get_peft_model(build("qwen2"), LoraConfig(target_modules=["q_proj"]))
    outer = get_peft_model(inner, LoraConfig(r=2, target_modules=["k_proj"]), adapter_name="outer")
    fill_b(outer, SEED, 0.3)
    with tempfile.TemporaryDirectory() as temporary:
        outer.save_pretrained(temporary, selected_adapters=["outer"], save_embedding_layers=False)
        shutil.copytree(pathlib.Path(temporary) / "outer", fresh(out / "twice"), dirs_exist_ok=True)
    for file in (out / "twice").iterdir():  # safetensors writes files that only their owner reads
        file.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "torch")
    out = fresh(parser.parse_args().out)
    torch.manual_seed(SEED)
    loads, refused = save_all(out)
    write_json(out / "expected.json", {"version": torch.__version__, "loads": loads, "refused": refused})
    save_adapters(out / "adapters")
    save_spellings(out / "adapters")


if __name__ == "__main__":
    main()
