"""What torch's float32 makes of a bfloat16 base: W + s·B·A, computed in float32 by PEFT's own delta, rounded once.

    merge_sums.py [--out tests/golden/merge/union-sums.json]

For adapters of union-3m, the SHA-256 of the bfloat16 bytes of every adapted weight, and how many values they hold.
"""
import argparse
import hashlib
import pathlib

import torch

from common import GOLDEN, union, versions, write_json

ADAPTERS = ["f32", "rslora", "patterns", "regex"]


def sums(adapter):
    from peft import PeftModel
    model = PeftModel.from_pretrained(union(torch.bfloat16).float(), GOLDEN / "peft" / adapter)
    result = {}
    for name, module in model.base_model.model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        weight = module.base_layer.weight.detach()
        merged = (weight + module.get_delta_weight("default").detach()).to(torch.bfloat16).contiguous()
        digest = hashlib.sha256(merged.view(torch.uint8).numpy().tobytes()).hexdigest()
        result[name] = {"sha256": digest, "values": merged.numel()}
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "merge" / "union-sums.json")
    out = parser.parse_args().out
    write_json(out, {**{adapter: sums(adapter) for adapter in ADAPTERS}, "versions": versions("torch", "peft")})


if __name__ == "__main__":
    main()
