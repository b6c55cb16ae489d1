"""PyTorch's gradients where a function has a kink: equal values in maxima and minima, and zero.

    ties.py [--out tests/golden/ties.json]

Every case is one ONNX operator: its inputs, a gradient of its output, and the gradients of the inputs. All in float32, on numbers
that are exact in it. Limits of clamp are left out: there PyTorch's answer depends on whether they are scalars or tensors.
"""
import argparse
import pathlib

import torch

from common import GOLDEN, versions, write_json

VALUES = [[1.0, 3.0, 3.0, -2.0], [3.0, 3.0, 3.0, 0.0], [0.5, -2.0, -2.0, -1.0]]


def case(op, function, inputs, attributes=None):
    tensors = [torch.tensor(values, requires_grad=True) for values in inputs]
    y = function(*tensors)
    dy = (torch.arange(y.numel(), dtype=torch.float32) * 2 + 3).reshape(y.shape)
    y.backward(dy)

    def plain(tensor):
        return {"shape": list(tensor.shape), "values": tensor.detach().flatten().tolist()}

    return {"op": op, "attributes": attributes or {}, "inputs": [plain(t) for t in tensors], "dy": plain(dy),
            "gradients": [plain(t.grad) for t in tensors]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "ties.json")
    out = parser.parse_args().out
    row = [1.0, 3.0, 0.0, -2.0]
    cases = {
        "maximum": case("Max", torch.maximum, [VALUES, [row] * 3]),
        "maximum, a row": case("Max", torch.maximum, [VALUES, row]),
        "maximum, a scalar": case("Max", torch.maximum, [VALUES, -1.0]),
        "minimum": case("Min", torch.minimum, [VALUES, [row] * 3]),
        "minimum, a row": case("Min", torch.minimum, [VALUES, row]),
        "amax, last axis": case("ReduceMax", lambda x: x.amax(-1, keepdim=True), [VALUES], {"axes": [-1]}),
        "amax, first axis, dropped": case("ReduceMax", lambda x: x.amax(0), [VALUES], {"axes": [0], "keepdims": 0}),
        "max of all": case("ReduceMax", lambda x: x.max(), [VALUES], {"keepdims": 0}),
        "amin, last axis": case("ReduceMin", lambda x: x.amin(-1, keepdim=True), [VALUES], {"axes": [-1]}),
        "min of all": case("ReduceMin", lambda x: x.min(), [VALUES], {"keepdims": 0}),
        "abs": case("Abs", torch.abs, [VALUES]),
        "relu": case("Relu", torch.relu, [VALUES]),
    }
    write_json(out, {**cases, "versions": versions("torch")})
    out.chmod(0o644)


if __name__ == "__main__":
    main()
