"""What torch's float32 makes of a bfloat16 base: W + s·B·A, computed in float32 by PEFT's own delta, rounded once.

    merge_sums.py [--out tests/golden/merge/union-sums.json]

For adapters of union-3m and every adapted weight: how many values it has, the SHA-256 of their bfloat16 bytes, and the few that are
not what float64 gives, as place and bits. So a reader that computes in float64 has them all.
"""
import argparse
import hashlib
import pathlib

import torch

from common import GOLDEN, union, versions, write_json

ADAPTERS = ["f32", "rslora", "patterns", "regex"]


def rounded_once(values):
    """float64 → bfloat16, to nearest even; torch's own conversion rounds to float32 on the way. Not for subnormals."""
    bits = values.contiguous().view(torch.int64)
    bits = (bits + (1 << 44) - 1 + ((bits >> 45) & 1)) >> 45 << 45
    return bits.view(torch.float64).to(torch.bfloat16)


def sums(adapter):
    from peft import PeftModel
    model = PeftModel.from_pretrained(union(torch.bfloat16).float(), GOLDEN / "peft" / adapter)
    result = {}
    for name, module in model.base_model.model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        weight = module.base_layer.weight.detach()
        merged = (weight + module.get_delta_weight("default").detach()).to(torch.bfloat16).contiguous()
        a, b = (factor["default"].weight.detach().double() for factor in (module.lora_A, module.lora_B))
        exact = rounded_once(weight.double() + module.scaling["default"] * (b @ a))
        bits = merged.view(torch.int16).flatten()
        others = (bits != exact.view(torch.int16).flatten()).nonzero().flatten().tolist()
        digest = hashlib.sha256(bits.numpy().tobytes()).hexdigest()
        result[name] = {"values": bits.numel(), "sha256": digest, "unlikeFloat64": [[i, bits[i].item() & 0xFFFF] for i in others]}
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "merge" / "union-sums.json")
    out = parser.parse_args().out
    write_json(out, {**{adapter: sums(adapter) for adapter in ADAPTERS}, "versions": versions("torch", "peft")})


if __name__ == "__main__":
    main()
