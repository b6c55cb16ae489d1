"""Losses of sentence-transformers' CrossEncoder over fixed scores, with their gradients, in float32.

    rerank_losses.py [--out tests/golden/embedding/rerank.json]

Needs requirements.txt, but sentence-transformers==5.7.0.
"""
import argparse
import pathlib

import torch
from sentence_transformers.cross_encoder import CrossEncoder, losses

from common import GOLDEN, versions, write_json

LOGITS = [[0.5, -1.25, 2.0, 0.25], [1.5, -0.5], [-2.0, 3.0, 0.75], [8.0, -30.0, 4.0]]
GRADED = [[0, 2, 1, 3], [1, 0], [2, 2, 0], [0, 1, 1]]
BINARY = [[1, 0, 0, 1], [1, 0], [0, 1, 0], [0.25, 0.5, 1]]
TEACHER = [[3.0, 1.0, 0.5], [2.0, 2.5, -1.0], [0.3, 0.1, 0.2]]


class Given(CrossEncoder):
    """A model whose scores are given, by pairs of a question and a document."""
    device, num_labels = torch.device("cpu"), 1

    def __init__(self, lists):
        torch.nn.Module.__init__(self)
        self.values = torch.tensor([value for row in lists for value in row], requires_grad=True)
        self.places = {pair: i for i, pair in enumerate((f"q{i}", f"d{i}-{j}") for i, row in enumerate(lists) for j in range(len(row)))}

    def preprocess(self, pairs, **_):
        return {"places": torch.tensor([self.places[tuple(pair)] for pair in pairs])}

    def forward(self, features, **_):
        return {"scores": self.values[features["places"]].unsqueeze(-1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "embedding" / "rerank.json")
    results = {}

    def add(name, make, logits, labels, options):
        model = Given(logits)
        loss = make(model)
        queries = [f"q{i}" for i in range(len(logits))]
        documents = [[f"d{i}-{j}" for j in range(len(row))] for i, row in enumerate(logits)]
        if options["loss"] == "BinaryCrossEntropy":
            flat = lambda rows: [value for row in rows for value in row]
            value = loss([flat([[q] * len(d) for q, d in zip(queries, documents)]), flat(documents)], torch.tensor(flat(labels)))
        elif options["loss"] == "MarginMSE":
            value = loss([queries, *map(list, zip(*documents))], torch.tensor(labels))
        else:
            value = loss([queries, documents], [torch.tensor(row, dtype=torch.float32) for row in labels])
        value.backward()
        results[name] = {"options": options, "logits": logits, "labels": labels, "loss": value.item(), "gradients": model.values.grad.tolist()}

    weight = torch.tensor(3.0)
    add("pairs", lambda m: losses.BinaryCrossEntropyLoss(m), LOGITS, BINARY, {"loss": "BinaryCrossEntropy"})
    add("weighted", lambda m: losses.BinaryCrossEntropyLoss(m, pos_weight=weight), LOGITS, BINARY, {"loss": "BinaryCrossEntropy", "posWeight": 3})
    add("lambda", lambda m: losses.LambdaLoss(m), LOGITS, GRADED, {"loss": "Lambda"})
    add("lambda-cut", lambda m: losses.LambdaLoss(m, k=2), LOGITS, GRADED, {"loss": "Lambda", "k": 2})
    add("lists", lambda m: losses.ListNetLoss(m), LOGITS, GRADED, {"loss": "ListNet"})
    add("ranks", lambda m: losses.RankNetLoss(m), LOGITS, GRADED, {"loss": "RankNet"})
    square = [row[:3] for row in LOGITS if len(row) > 2]
    add("scores", lambda m: losses.MarginMSELoss(m), square, TEACHER, {"loss": "MarginMSE"})
    add("margins", lambda m: losses.MarginMSELoss(m), square, [row[:2] for row in TEACHER], {"loss": "MarginMSE"})
    write_json(parser.parse_args().out, {"versions": {**versions("torch"), **versions("sentence_transformers")}, "losses": results})


if __name__ == "__main__":
    main()
