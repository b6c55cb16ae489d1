#!/usr/bin/env python3
"""Writes onnx/model.onnx from model.safetensors: the model of train_base.py with a key-value cache, as transformers.js takes it.

    export_onnx.py [--model DIR] [--out FILE]

Inputs and outputs are named as optimum's `text-generation-with-past` names them. The file is kept only if ONNX Runtime computes the
logits of transformers from it, with a cache and padding. Needs Python 3.11 and scripts/golden/requirements.txt, which pins torch 2.15.0.
"""
import argparse, json, os, pathlib

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn as nn
from onnx import helper, numpy_helper
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from train_base import CONFIG, PAD, LlamaForCausalLM

LAYERS, KV_HEADS, HEAD_DIM = (CONFIG[k] for k in ("num_hidden_layers", "num_key_value_heads", "head_dim"))
CACHE = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]


class WithCache(nn.Module):
    """The model as a graph has it: flat lists of tensors in and out."""

    def __init__(self, model):
        super().__init__()
        self.model, self.lm_head = model.model, model.lm_head

    def forward(self, input_ids, attention_mask, position_ids, *past):
        hidden, presents = self.model(input_ids, attention_mask, position_ids, list(zip(past[::2], past[1::2])))
        return self.lm_head(hidden), *(t for pair in presents for t in pair)


def load(folder):
    model = LlamaForCausalLM()
    missing = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys  # the tied head is not stored
    return WithCache(model).eval()


def example(batch=2, past=5, sequence=3):
    """Feeds of a call with something in the cache."""
    ids = torch.randint(3, CONFIG["vocab_size"], (batch, sequence))
    mask = torch.ones(batch, past + sequence, dtype=torch.long)
    positions = torch.arange(past, past + sequence).expand(batch, -1)
    return ids, mask, positions, *(torch.randn(batch, KV_HEADS, past, HEAD_DIM) for _ in CACHE)


def export(model, file):
    batch, sequence, past, total = "batch_size", "sequence_length", "past_sequence_length", "past_sequence_length + sequence_length"
    axes = {"input_ids": {0: batch, 1: sequence}, "attention_mask": {0: batch, 1: total}, "position_ids": {0: batch, 1: sequence},
            **{f"past_key_values.{name}": {0: batch, 2: past} for name in CACHE},
            "logits": {0: batch, 1: sequence}, **{f"present.{name}": {0: batch, 2: total} for name in CACHE}}
    names = list(axes)
    torch.onnx.export(model, example(), file, input_names=names[:3 + len(CACHE)], output_names=names[3 + len(CACHE):],
                      opset_version=17, dynamo=False, dynamic_axes=axes)


def share_embedding(file):
    """Lets the head read the embedding through a Transpose, where the exporter has written the matrix a second time."""
    graph = (model := onnx.load(file)).graph
    head = next(node for node in graph.node if node.name == "/lm_head/MatMul")
    copy = next(tensor for tensor in graph.initializer if tensor.name == head.input[1])
    embedding = next(tensor for tensor in graph.initializer if tensor.name == "model.embed_tokens.weight")
    assert (numpy_helper.to_array(copy) == numpy_helper.to_array(embedding).T).all()
    graph.initializer.remove(copy)
    transpose = helper.make_node("Transpose", [embedding.name], ["/lm_head/Transpose_output_0"], "/lm_head/Transpose", perm=[1, 0])
    graph.node.insert(list(graph.node).index(head), transpose)
    head.input[1] = transpose.output[0]
    onnx.checker.check_model(model)
    onnx.save(model, file)


class Cached:
    """The graph with what it has read so far: each call takes tokens (B, T) that follow."""

    def __init__(self, file, batch):
        self.session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.past = [np.zeros((batch, KV_HEADS, 0, HEAD_DIM), np.float32) for _ in CACHE]

    def __call__(self, ids, mask):
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1]:]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions,
                 **{f"past_key_values.{name}": value for name, value in zip(CACHE, self.past)}}
        logits, *self.past = self.session.run(None, feeds)
        return logits


@torch.no_grad()
def largest_error(folder, file, steps=40):
    """How far the logits are from those of transformers: prompts padded on the left, then greedy tokens one by one."""
    truth = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    prompts = [entry["input_ids"] for entry in json.loads((folder / "reference.json").read_text(encoding="utf8"))]
    width = max(map(len, prompts))
    ids = np.array([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    graph, new, error = Cached(file, len(prompts)), ids, 0.0
    for _ in range(steps):
        logits = graph(new, mask)
        for row, of_row in enumerate(logits):
            real = ids[row][mask[row] == 1]
            expected = truth(torch.tensor(real[None]), use_cache=False).logits[0].numpy()
            n = min(len(of_row), len(real))  # new tokens that are no padding
            error = np.maximum(error, abs(of_row[-n:] - expected[-n:]).max())  # keeps NaN
        new = logits[:, -1:].argmax(-1)
        ids, mask = np.concatenate((ids, new), 1), np.concatenate((mask, np.ones_like(new)), 1)
    return error


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=here)
    parser.add_argument("--out", type=pathlib.Path, default=here / "onnx" / "model.onnx")
    args = parser.parse_args()
    draft = args.out.with_suffix(".draft")
    export(load(args.model), draft)
    share_embedding(draft)
    error = largest_error(args.model, draft)
    print(f"largest error of a logit: {error:.1e}")
    if not error <= 1e-4:
        raise SystemExit(f"not transformers' logits; left as {draft}")
    os.replace(draft, args.out)


if __name__ == "__main__":
    main()
