"""Small graphs from torch.onnx.export, and PyTorch's gradients of them in float64.

    onnx_gradients.py

Writes examples/spirals.onnx, the graph of two examples, and tests/golden/onnx-gradients: transformer.onnx and gradients.json, which has the inputs
of both graphs, and the loss and its gradients by inputs and weights.
"""
import copy
import logging
import math
import warnings

import onnx
import onnx_ir
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from common import GOLDEN, REPO, fresh, versions, write_json

SEED, WIDTH, HEADS, WORDS = 31, 8, 2, 11


class Spirals(nn.Module):
    """Says to which of two spirals a point belongs."""

    def __init__(self):
        super().__init__()
        self.hidden, self.between, self.out = nn.Linear(2, 24), nn.Linear(24, 24), nn.Linear(24, 2)

    def forward(self, points, labels):
        logits = self.out(torch.tanh(self.between(torch.tanh(self.hidden(points)))))
        return cross_entropy(logits, labels), logits


class Transformer(nn.Module):
    """A causal layer with attention, over word embeddings."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, tokens):
        x = self.words(tokens)
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = torch.softmax(scores.masked_fill(hidden, -1e9), -1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        logits = x[:, :-1] @ self.words.weight.T
        return cross_entropy(logits.reshape(-1, WORDS), tokens[:, 1:].reshape(-1))


def export(model, inputs, path, **names):
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2)
    shapes = tuple({axis: (batch, length)[axis] for axis in range(tensor.dim() if tensor.dim() == 2 and not tensor.is_floating_point() else 1)} for tensor in inputs)
    program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes, opset_version=18, optimize=False, verbose=False, **names)
    for value in [program.model.graph, *program.model.graph.all_nodes(), *program.model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    onnx.save(onnx_ir.to_proto(program.model), path)


def truth(model, inputs):
    model = copy.deepcopy(model).double()
    given = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    loss = model(*given)
    loss = loss[0] if isinstance(loss, tuple) else loss
    loss.backward()
    flat = lambda tensor: [round(value, 12) for value in tensor.flatten().tolist()]
    gradients = {name: flat(weight.grad) for name, weight in model.named_parameters()}
    gradients |= {f"input {i}": flat(x.grad) for i, x in enumerate(given) if x.requires_grad}
    fed = [{"dims": list(x.shape), "data": x.flatten().tolist()} for x in inputs]
    return {"inputs": fed, "loss": loss.item(), "gradients": gradients}


def main():
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(SEED)
    out = fresh(GOLDEN / "onnx-gradients")
    spirals, transformer = Spirals().eval(), Transformer().eval()
    points, labels = torch.randn(3, 2), torch.tensor([0, 1, 1])
    tokens = torch.randint(WORDS, (2, 5))
    for weight in transformer.parameters():  # The exporter would share equal weights, such as those of two norms.
        nn.init.normal_(weight, std=0.3)
    export(spirals, (points, labels), REPO / "examples" / "spirals.onnx", input_names=["points", "labels"], output_names=["loss", "logits"])
    export(transformer, (tokens,), out / "transformer.onnx", input_names=["tokens"], output_names=["loss"])
    write_json(out / "gradients.json", {"spirals": truth(spirals, (points, labels)), "transformer": truth(transformer, (tokens,)), "versions": versions("torch", "onnx", "onnxscript")})


main()
