"""Outputs and gradients of single PEFT layers, by PyTorch's autograd in float64, with a given dropout mask where there is dropout.

    peft_gradients.py [--out tests/golden/gradients]

cases.json: the config of each case. tensors.safetensors, under CASE/NAME: weight, lora_A, lora_B, magnitude, bias (of B); input,
keep (1 where dropout lets through), output (without the base's bias); grad_output, and gradient/NAME of Σ grad_output·output.
"""
import argparse
import pathlib

import torch
from torch import nn

from common import GOLDEN, save_tensors, versions, write_json

SEED = 29
KINDS = {"plain": {}, "dora": {"use_dora": True}, "dora-rslora": {"use_dora": True, "use_rslora": True}, "bias": {"lora_bias": True}}
CONFIG = {"r": 2, "lora_alpha": 5}
LAYERS = {  # name: (layer, shape of its input, kinds)
    "linear": (lambda: nn.Linear(7, 5), (3, 7), list(KINDS)),
}
DROPPED = ["linear"]


class Dropout(nn.Module):
    """Inverted dropout with a mask that is known."""

    def __init__(self, keep, p):
        super().__init__()
        self.keep, self.p = keep, p

    def forward(self, x):
        return x * self.keep / (1 - self.p)


def make(layer, shape, kind, dropout):
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    random = lambda *size: torch.randn(*size, generator=generator).double()
    holder = nn.Module()
    holder.layer = layer()
    adapted = get_peft_model(holder, LoraConfig(target_modules=["layer"], lora_dropout=dropout, **CONFIG, **KINDS[kind])).double()
    module = adapted.base_model.model.layer
    base = module.get_base_layer()
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in parameters.values():
            p.copy_((p + 0.3 * random(p.shape)).float())  # what the file holds exactly
    tensors = {"weight": base.weight, "input": random(*shape).requires_grad_()}
    if dropout:
        tensors["keep"] = (torch.rand(shape, generator=generator) >= dropout).double()
        module.lora_dropout["default"] = Dropout(tensors["keep"], dropout)
    module.train()
    output = module(tensors["input"]) - base.bias
    tensors |= {"output": output, "grad_output": random(*output.shape)}
    names = {"lora_A.default.weight": "lora_A", "lora_B.default.weight": "lora_B", "lora_B.default.bias": "bias",
             "lora_magnitude_vector.default.weight": "magnitude"}
    wanted = {names[k]: p for k, p in parameters.items()} | {"input": tensors["input"]}
    gradients = torch.autograd.grad((output * tensors["grad_output"]).sum(), list(wanted.values()))
    tensors |= wanted | {f"gradient/{k}": g for k, g in zip(wanted, gradients)}
    config = {"rank": CONFIG["r"], "alpha": CONFIG["lora_alpha"], "useDora": "dora" in kind, "useRslora": "rslora" in kind,
              "loraBias": kind == "bias", "dropout": dropout}
    return {"layer": type(base).__name__, "config": config}, tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "gradients")
    out = parser.parse_args().out
    cases, tensors = {}, {}
    for name, (layer, shape, kinds) in LAYERS.items():
        for kind in kinds:
            for dropout in (0.0, 0.4) if name in DROPPED else (0.0,):
                case = f"{name}-{kind}" + ("-dropout" if dropout else "")
                cases[case], own = make(layer, shape, kind, dropout)
                tensors |= {f"{case}/{k}": v for k, v in own.items()}
    save_tensors(out / "tensors.safetensors", tensors)
    write_json(out / "cases.json", {"versions": versions("torch", "peft"), **cases})


if __name__ == "__main__":
    main()
