"""A tiny model whose linear layers are exported as convolutions of kernel 1, and PEFT's outputs for adapters of the linear layers.

    pointwise.py [--out tests/golden/pointwise]

The model keeps its linear layers in PyTorch, where PEFT adapts them. For the export each is replaced by a Conv1d or a Conv2d with the same
weight, as exporters for phones' chips do. conv1d.onnx is written by torch.onnx.export's older exporter, conv2d.onnx by the newer one.
outputs.safetensors has the input x, and in float64 rounded to float32 the output without an adapter and with each case, and the gradients of
sum(g · output) by all that a case trains.
"""
import argparse
import copy
import pathlib
import warnings

import onnx
import torch
from torch import nn

from common import GOLDEN, adapt, fresh, save_adapter, save_tensors, versions, write_json
from peft_kinds import move

SEED, WIDTH, INNER, OUT = 29, 12, 20, 7
RANKS = {"r": 3, "lora_alpha": 5, "task_type": None}
CASES = {
    "linear": {**RANKS, "rank_pattern": {"up": 2}, "target_modules": ["query", "up", "down", "out"]},
    "dora": {**RANKS, "target_modules": ["query", "down"], "use_dora": True},
    "lora-bias": {**RANKS, "target_modules": ["up", "out"], "lora_bias": True},
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x):
        x = x + torch.tanh(self.query(x))
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    """`out` stays a linear layer in the export."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.out = nn.Linear(WIDTH, OUT)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def build():
    torch.manual_seed(SEED)
    model = Model()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model.eval()


class Channels(nn.Module):
    """The same blocks over channels, (batch, channels, …), with a convolution in the place of each linear layer."""

    def __init__(self, model, axes):
        super().__init__()
        self.axes = axes
        self.blocks = copy.deepcopy(model.blocks)
        self.out = copy.deepcopy(model.out)
        for block in self.blocks:
            for name in ("query", "up", "down"):
                setattr(block, name, convolution(getattr(block, name), axes))

    def forward(self, x):
        x = x.transpose(1, 2)
        x = x if self.axes == 1 else x.unsqueeze(2)
        for block in self.blocks:
            x = block(x)
        x = x if self.axes == 1 else x.squeeze(2)
        return self.out(x.transpose(1, 2))


def convolution(linear, axes):
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    own = kind(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    with torch.no_grad():
        own.weight.copy_(linear.weight.reshape(own.weight.shape))
        if linear.bias is not None:
            own.bias.copy_(linear.bias)
    return own


def export(path, x, axes):
    module = Channels(build(), axes).eval()
    names = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if axes == 1:
            torch.onnx.export(module, (x,), path, dynamo=False, opset_version=17, dynamic_axes={"x": {0: "batch", 1: "sequence"}}, **names)
        else:
            dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
            torch.onnx.export(module, (x,), path, dynamo=True, external_data=False, verbose=False, dynamic_shapes={"x": dims}, **names)
    exported = onnx.load(path)
    for node in exported.graph.node:  # stack traces name this machine's folders, and are most of the file
        kept = [p for p in node.metadata_props if p.key.endswith("name_scopes")]
        node.doc_string = ""
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    del exported.graph.value_info[:]
    onnx.save(exported, path)
    print(path.name, [n.op_type for n in exported.graph.node])


def gradients(case, folder, x, g):
    from peft import PeftModel
    model = PeftModel.from_pretrained(build(), folder, is_trainable=True).eval().double()
    (model(x.double()) * g.double()).sum().backward()
    return {f"gradient/{case}/{key.replace('.default', '')}": p.grad for key, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def main():
    from peft import PeftModel
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "pointwise")
    out = fresh(parser.parse_args().out)
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(SEED))
    for name, axes in (("conv1d", 1), ("conv2d", 2)):
        export(out / f"{name}.onnx", x, axes)
    outputs = {"x": x, "base": build().double()(x.double())}
    outputs["g"] = torch.randn(outputs["base"].shape, generator=torch.Generator().manual_seed(SEED + 1))
    for case, config in CASES.items():
        generator = torch.Generator().manual_seed(SEED)
        adapted = adapt(build(), SEED, 0.3, name="tiny-blocks", **config)
        move(adapted, generator)
        save_adapter(adapted, out / case)
        outputs[case] = PeftModel.from_pretrained(build(), out / case).eval().double()(x.double())
        assert (outputs[case] - outputs["base"]).abs().max() > 0.05, case
        with torch.enable_grad():
            outputs.update(gradients(case, out / case, x, outputs["g"]))
    save_tensors(out / "outputs.safetensors", outputs)
    write_json(out / "golden.json", {"versions": versions("torch", "peft", "onnx", "onnxscript"), "cases": list(CASES)})


if __name__ == "__main__":
    main()
