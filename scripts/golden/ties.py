"""PyTorch's gradients where a function has a kink, is flat, or where a formula for its slope overflows.

    ties.py [--out tests/golden/ties.json]

Every case is one ONNX operator: its inputs, constants that follow them (null: left out), a gradient of its output, and the gradients
of the inputs. All in float32. Limits of clamp are numbers, as in graphs; where they are tensors, PyTorch's answer at ties is half of dy.
"""
import argparse
import pathlib

import torch
from torch.nn import functional

from common import GOLDEN, versions, write_json

VALUES = [[1.0, 3.0, 3.0, -2.0], [3.0, 3.0, 3.0, 0.0], [0.5, -2.0, -2.0, -1.0]]


MASKED = [[0.0, -3e38, 1.0], [-3e38, -3e38, -3e38]]
STEPS = [0.0, 1.0, 2.0, 3.0]
FAR = [[0.0, 1.0, -1.0, 20.0], [-20.0, 88.0, -88.0, 200.0], [-200.0, 1e10, -1e10, 3.0]]


def case(op, function, inputs, attributes=None, constants=()):
    tensors = [torch.tensor(values, requires_grad=True) for values in inputs]
    y = function(*tensors)
    dy = (torch.arange(y.numel(), dtype=torch.float32) * 2 + 3).reshape(y.shape)
    y.backward(dy)

    def plain(tensor):
        return {"shape": list(tensor.shape), "values": tensor.detach().flatten().tolist()}

    return {"op": op, "attributes": attributes or {}, "inputs": [plain(t) for t in tensors],
            "constants": [None if c is None else plain(torch.tensor(c)) for c in constants], "dy": plain(dy),
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
        "clamp": case("Clip", lambda x: x.clamp(-2, 3), [VALUES], constants=[-2.0, 3.0]),
        "clamp, within": case("Clip", lambda x: x.clamp(-1, 1), [VALUES], constants=[-1.0, 1.0]),
        "clamp, only a minimum": case("Clip", lambda x: x.clamp(min=0), [VALUES], constants=[0.0]),
        "clamp, only a maximum": case("Clip", lambda x: x.clamp(max=3), [VALUES], constants=[None, 3.0]),
        "clamp, no limit inside": case("Clip", lambda x: x.clamp(3, -1), [VALUES], constants=[3.0, -1.0]),
        **{f"power {p}": case("Pow", lambda x: x ** p, [VALUES], constants=[float(p)]) for p in (0, 1, 2, 3, 4)},
        "power 1.5": case("Pow", lambda x: x ** 1.5, [[0.0, 1.0, 4.0]], constants=[1.5]),
        "powers": case("Pow", torch.pow, [[[0.0] * 4, [2.0] * 4], [0.0, 1.0, 2.0, 1.5]]),
        "powers of constant exponents": case("Pow", lambda x: torch.pow(x, torch.tensor(STEPS)), [VALUES], constants=[STEPS]),
        "sigmoid": case("Sigmoid", torch.sigmoid, [FAR]),
        "tanh": case("Tanh", torch.tanh, [FAR]),
        "erf": case("Erf", torch.erf, [FAR]),
        "softplus": case("Softplus", functional.softplus, [FAR]),
        "gelu": case("com.microsoft:Gelu", functional.gelu, [FAR]),
        "gelu by tanh": case("com.microsoft:FastGelu", lambda x: functional.gelu(x, approximate="tanh"), [FAR]),
        "hard sigmoid": case("HardSigmoid", functional.hardsigmoid, [[-3.0, 3.0, 0.0, 4.0]], {"alpha": {"float": 1 / 6}}),
        "softmax, masked": case("Softmax", lambda x: x.softmax(-1), [MASKED], {"axis": -1}),
        "log softmax, masked": case("LogSoftmax", lambda x: x.log_softmax(-1), [MASKED], {"axis": -1}),
        "layer norm of equal values": case("LayerNormalization", lambda x: functional.layer_norm(x, (3,), eps=2**-10), [[[2.0] * 3]],
                                           {"epsilon": {"float": 2**-10}}, [[1.0] * 3]),
        "RMS norm of zeros": case("SimplifiedLayerNormalization", lambda x: functional.rms_norm(x, (3,), eps=2**-10), [[[0.0] * 3]],
                                  {"epsilon": {"float": 2**-10}}, [[1.0] * 3]),
    }
    write_json(out, {**cases, "versions": versions("torch")})
    out.chmod(0o644)


if __name__ == "__main__":
    main()
