"""Tiny graphs of two linear layers in each form that quantizers of ONNX Runtime write, with PyTorch's numbers beside them.

    forms.py [--out tests/golden/forms] [NAME …]

y = fc2(relu(fc1(x))). numbers.safetensors holds x, ONNX Runtime's y, the weights (d, k) that the integers stand for, an adapter of both
layers, PyTorch's y with it, and the gradients of sum(g · y) by A and B. Where inputs are quantized as the graph runs, PyTorch quantizes
them alike, and the gradient goes straight through.
"""
import argparse
import pathlib
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import (DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer)
from safetensors.torch import save_file

import packed
from common import GOLDEN, fresh, versions, write_json

K, HIDDEN, D, RANK, SCALING, SEED = 48, 40, 24, 4, 2.0, 11


def weights():
    rng = np.random.default_rng(SEED)
    return {"fc1": (rng.standard_normal((K, HIDDEN)) / K ** 0.5).astype(np.float32),
            "fc2": (rng.standard_normal((HIDDEN, D)) / HIDDEN ** 0.5).astype(np.float32)}


def plain(opset=17, dtype=TensorProto.FLOAT):
    np_type = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    nodes = [helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["/model/fc1/MatMul_output_0"], "/model/fc1/MatMul"),
             helper.make_node("Relu", ["/model/fc1/MatMul_output_0"], ["/model/Relu_output_0"], "/model/Relu"),
             helper.make_node("MatMul", ["/model/Relu_output_0", "onnx::MatMul_2"], ["y"], "/model/fc2/MatMul")]
    w = weights()
    init = [numpy_helper.from_array(w["fc1"].astype(np_type), "onnx::MatMul_1"),
            numpy_helper.from_array(w["fc2"].astype(np_type), "onnx::MatMul_2")]
    graph = helper.make_graph(nodes, "forms", [helper.make_tensor_value_info("x", dtype, ["batch", "sequence", K])],
                              [helper.make_tensor_value_info("y", dtype, ["batch", "sequence", D])], init)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def nbits(bits=4, block=32, symmetric=True, accuracy=None, dtype=TensorProto.FLOAT, fmt=QuantFormat.QOperator, opset=17):
    def make(path):
        config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, accuracy_level=accuracy,
                                              quant_format=fmt, bits=bits)
        quantizer = MatMulNBitsQuantizer(plain(opset, dtype), algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, path)
    return make


def float_zero_points(path):
    """Zero points that are no whole numbers, as the operator allows in the type of the scales."""
    nbits(4, 16, False)(path)
    model = onnx.load(path)
    init = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        n, blocks = numpy_helper.to_array(init[node.input[1]]).shape[:2]
        old = numpy_helper.to_array(init[node.input[3]]).reshape(n, -1)
        halves = np.stack([old & 15, old >> 4], -1).reshape(n, -1)[:, :blocks].astype(np.float32) + 0.25
        init[node.input[3]].CopyFrom(numpy_helper.from_array(halves.reshape(-1), node.input[3]))
    onnx.save(model, path)


def bnb4(quant_type, block=64):
    def make(path):
        quantizer = MatMulBnb4Quantizer(plain(), quant_type, block)
        quantizer.process()
        onnx.save(quantizer.model.model, path)
    return make


def dynamic(weight_type, per_channel=False):
    def make(path):
        with tempfile.TemporaryDirectory() as work:
            source = pathlib.Path(work) / "plain.onnx"
            onnx.save(plain(), source)
            quantize_dynamic(source, path, weight_type=weight_type, per_channel=per_channel, reduce_range=False)
    return make


def fused(path):
    """As ONNX Runtime's own optimizer fuses it."""
    dynamic(QuantType.QUInt8)(path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def qdq(bits, axis):
    """DequantizeLinear with one scale (axis None) or one for each output, in front of a MatMul."""
    def make(path):
        model = plain()
        nodes = []
        for node in model.graph.node:
            if node.op_type == "MatMul":
                tensor = next(i for i in model.graph.initializer if i.name == node.input[1])
                w = numpy_helper.to_array(tensor)
                name = node.input[1]
                largest = np.abs(w).max(axis=0) if axis is not None else np.abs(w).max()
                scale = np.asarray(largest / 127, np.float32)
                q = np.clip(np.round(w / scale), -127, 127).astype(np.int8)
                zero = np.zeros(scale.shape, np.int8)
                model.graph.initializer.remove(tensor)
                model.graph.initializer.extend([numpy_helper.from_array(q, name + "_quantized"),
                                                numpy_helper.from_array(scale, name + "_scale"),
                                                numpy_helper.from_array(zero, name + "_zero_point")])
                nodes.append(helper.make_node("DequantizeLinear", [name + "_quantized", name + "_scale", name + "_zero_point"],
                                              [name], name + "_DequantizeLinear", **({} if axis is None else {"axis": axis})))
            nodes.append(node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, path)
    return make


FORMS = {  # name: (maker, inputs are quantized as it runs)
    "nbits-4-32": (nbits(), False),
    "nbits-4-16-zeros": (nbits(4, 16, False), False),
    "nbits-4-16-float-zeros": (float_zero_points, False),
    "nbits-4-f16": (nbits(4, 32, dtype=TensorProto.FLOAT16), False),
    "nbits-8-32": (nbits(8, 32), False),
    "nbits-8-16-zeros": (nbits(8, 16, False), False),
    "bnb4-nf4": (bnb4(1), False),
    "bnb4-fp4": (bnb4(0), False),
    "bnb4-nf4-odd": (bnb4(1, 128), False),  # the last block of fc2 is half full
    "int8": (dynamic(QuantType.QInt8), True),
    "uint8": (dynamic(QuantType.QUInt8), True),
    "int8-channels": (dynamic(QuantType.QInt8, True), True),
    "uint8-fused": (fused, True),
    "qdq-int4-blocks": (nbits(4, 16, True, fmt=QuantFormat.QDQ, opset=21), False),
    "qdq-uint4-blocks": (nbits(4, 16, False, fmt=QuantFormat.QDQ, opset=21), False),
    "qdq-int8": (qdq(8, None), False),
    "qdq-int8-channels": (qdq(8, 1), False),
}


# ---------------------------------------------------------------- the weights, by ONNX Runtime's own operators

def run(nodes, inputs, initializers, output, opset=21):
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                                           for n, v in inputs.items()],
                              [helper.make_tensor_value_info(output, TensorProto.UNDEFINED, None)], initializers)
    del graph.output[0].type.tensor_type.shape.dim[:]
    graph.output[0].ClearField("type")
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)])
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def stored_weight(model, node):
    """W (d, k): the operator's answer to the identity, or DequantizeLinear's."""
    init = {i.name: i for i in model.graph.initializer}
    attributes = {a.name: a for a in node.attribute}
    if node.op_type in ("MatMulNBits", "MatMulBnb4"):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for a in list(copy.attribute):
            if a.name == "accuracy_level":
                copy.attribute.remove(a)
        own = [init[i] for i in node.input[1:] if i]
        scale = numpy_helper.to_array(init[node.input[2]])
        identity = np.eye(attributes["K"].i, dtype=scale.dtype)
        copy.input[0] = "identity"
        return run([copy], {"identity": identity}, own, copy.output[0]).T.astype(np.float32)
    producers = {o: n for n in model.graph.node for o in n.output}
    if node.op_type == "MatMul":
        dequantize = producers[node.input[1]]
        own = [init[i] for i in dequantize.input if i]
        return run([dequantize], {}, own, dequantize.output[0]).T
    if node.op_type == "DynamicQuantizeMatMul":
        q, scale, zero = node.input[1:4]
    elif node.op_type == "MatMulIntegerToFloat":
        q, scale, zero = node.input[1], node.input[3], node.input[5]
    else:
        q, zero = node.input[1], node.input[3]
        scale = next(i for n in model.graph.node if n.op_type == "Mul" for i in n.input if i == q.replace("_quantized", "_scale"))
    nodes = [helper.make_node("DequantizeLinear", [q, scale, zero], ["w"], axis=1)]
    return run(nodes, {}, [init[q], init[scale], init[zero]], "w").T


class Straight(torch.autograd.Function):
    """DynamicQuantizeLinear and back; the gradient passes as if it were not there."""

    @staticmethod
    def forward(ctx, x):
        low, high = min(0.0, x.min().item()), max(0.0, x.max().item())
        scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
        zero = np.clip(np.round(np.float32(0) - np.float32(low) / scale), 0, 255)
        q = np.clip(np.round((x.detach().numpy().astype(np.float32) / scale)) + zero, 0, 255)
        return torch.tensor((q - zero) * np.float64(scale))

    @staticmethod
    def backward(ctx, g):
        return g


def forward(x, w, adapter, is_quantized):
    y = x
    for i, name in enumerate(("fc1", "fc2")):
        inside = Straight.apply(y) if is_quantized else y
        out = inside @ w[name].T
        if adapter:
            out = out + SCALING * (y @ adapter[f"{name}.A"].T) @ adapter[f"{name}.B"].T
        y = torch.relu(out) if i == 0 else out
    return y


def numbers(name, out):
    make, is_quantized = FORMS[name]
    folder = fresh(out / name)
    path = folder / "model.onnx"
    make(path)
    model = onnx.load(path)
    model.producer_name, model.producer_version = "", ""
    onnx.save(model, path)
    products = [n for n in model.graph.node if n.op_type.startswith(("MatMul", "DynamicQuantizeMatMul"))]
    assert len(products) == 2, [n.op_type for n in model.graph.node]
    w = {n: torch.tensor(stored_weight(model, node)).double() for n, node in zip(("fc1", "fc2"), products)}
    rng = torch.Generator().manual_seed(SEED)
    x = torch.randn(2, 5, K, generator=rng)
    half = any(i.type.tensor_type.elem_type == TensorProto.FLOAT16 for i in model.graph.input)
    if half:
        x = x.half().float()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    y = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x.numpy().astype(np.float16 if half else np.float32)})[0].astype(np.float32)
    truth = forward(x.double(), w, None, is_quantized)
    error = float(np.abs(y - truth.numpy()).max())
    if error > (5e-3 if half else 2e-5):
        raise SystemExit(f"{name}: ONNX Runtime differs from the weights that were read by {error}")
    adapter = {}
    for layer, (k, d) in {"fc1": (K, HIDDEN), "fc2": (HIDDEN, D)}.items():
        adapter[f"{layer}.A"] = torch.randn(RANK, k, generator=rng) / k ** 0.5
        adapter[f"{layer}.B"] = torch.randn(d, RANK, generator=rng) * 0.3
    wide = {key: v.double().requires_grad_() for key, v in adapter.items()}
    adapted = forward(x.double(), w, wide, is_quantized)
    g = torch.randn(adapted.shape, generator=rng)
    (adapted * g.double()).sum().backward()
    tensors = {"x": x, "y": torch.tensor(y), "adapted": adapted.detach(), "g": g,
               **{f"{n}.weight": v for n, v in w.items()}, **adapter,
               **{f"{key}.gradient": v.grad for key, v in wide.items()}}
    save_file({key: v.float().contiguous() for key, v in tensors.items()}, folder / "numbers.safetensors")
    print(name, error, [n.op_type for n in model.graph.node])
    return error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "forms")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    errors = {name: numbers(name, args.out) for name in args.names or FORMS}
    if not args.names:
        write_json(args.out / "golden.json", {"versions": versions("torch", "onnx", "onnxruntime"), "scaling": SCALING,
                                              "quantizesInputs": {n: q for n, (_, q) in FORMS.items()}, "onnxDeviation": errors})
    packed.pack(args.out, "forms")


if __name__ == "__main__":
    main()
