"""PEFT's part of learning.mjs: trains on the weights of a MatMulNBits graph, which ONNX Runtime itself turns into floats.

Reads one JSON request from stdin, and writes one JSON line for each seed.
"""
import json
import math
import pathlib
import random
import sys

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

REQUEST = json.load(sys.stdin)
torch.set_num_threads(REQUEST["threads"])
SUFFIX = "/MatMul_Q4"


def as_floats(graph, node):
    """W (d, k): what the operator gives for the rows of the identity."""
    k = next(a.i for a in node.attribute if a.name == "K")
    parts = [t for t in graph.initializer if t.name in node.input]
    output = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    single = helper.make_graph([node], "one", [helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, [k, k])], [output], parts)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(single, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.ascontiguousarray(session.run(None, {node.input[0]: np.eye(k, dtype=np.float32)})[0].T))


def quantized(model):
    """Puts the graph's weights into the model, the head's too, which is no longer tied then."""
    graph = onnx.load(pathlib.Path(REQUEST["folder"]) / "onnx" / "model.onnx").graph
    modules = dict(model.named_modules())
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    for node in nodes:
        module = modules[node.name.removesuffix(SUFFIX).lstrip("/").replace("/", ".")]
        module.weight = torch.nn.Parameter(as_floats(graph, node), requires_grad=False)
    print(f"{len(nodes)} weights from the graph", file=sys.stderr)
    return model


tokenizer = AutoTokenizer.from_pretrained(REQUEST["source"])


def encode(records):
    ids = [tokenizer(record["text"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id] for record in records]
    return [one[: REQUEST["maxLength"]] for one in ids]


def given(rows):
    width = max(map(len, rows))
    pad = lambda values, filler: torch.tensor([list(v) + [filler] * (width - len(v)) for v in values])  # noqa: E731
    return {"input_ids": pad(rows, 0), "labels": pad(rows, -100), "attention_mask": pad([[1] * len(row) for row in rows], 0)}


@torch.no_grad()
def evaluate(model, rows):
    model.eval()
    total = sum(float(model(**given([row])).loss) * (len(row) - 1) for row in rows)
    model.train()
    return total / sum(len(row) - 1 for row in rows)


training, evaluation = encode(REQUEST["training"]), encode(REQUEST["evaluation"])
base = quantized(AutoModelForCausalLM.from_pretrained(REQUEST["source"], dtype=torch.float32))
steps, size = REQUEST["steps"], REQUEST["batchSize"]
warmup = math.ceil(0.03 * steps)


def rate(step):
    """The share of the learning rate: linear warm-up, then cosine."""
    return (step + 1) / (warmup + 1) if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


for seed in REQUEST["seeds"]:
    torch.manual_seed(seed)
    config = LoraConfig(r=REQUEST["rank"], lora_alpha=REQUEST["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    before = evaluate(model, evaluation)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=REQUEST["learningRate"], weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    order = list(training)
    random.Random(seed).shuffle(order)
    for step in range(steps):
        model(**given(order[step * size : (step + 1) * size])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(json.dumps({"seed": seed, "before": before, "after": evaluate(model, evaluation)}), flush=True)
    base = model.unload()
