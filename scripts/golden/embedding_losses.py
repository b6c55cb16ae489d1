"""Losses of sentence-transformers over fixed vectors, with their gradients, in float64.

    embedding_losses.py [--out tests/golden/embedding/losses.json]

Needs requirements.txt, but sentence-transformers==5.7.0.
"""
import argparse
import pathlib

import torch

from common import GOLDEN, versions, write_json

BATCH, GROUPS, SIZE = 4, 4, 7
SCORES = [0.9, 0.4, 0.4, -0.2]
TEACHER = [[3.0, 1.0, 0.5], [2.0, 2.5, -1.0], [0.3, 0.1, 0.2], [5.0, -2.0, 4.0]]


class Given(torch.nn.Module):
    """A model whose vectors are given."""
    device = torch.device("cpu")

    def __getitem__(self, index):
        return self

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self):
        return SIZE


def cases(model):
    from sentence_transformers.sentence_transformer import losses
    mnr = losses.MultipleNegativesRankingLoss
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    cosine = losses.TripletDistanceMetric.COSINE

    def gist(**more):
        """Without its constructor, which asks for tokenizers: only the loss over vectors is used."""
        loss = losses.CachedGISTEmbedLoss.__new__(losses.CachedGISTEmbedLoss)
        torch.nn.Module.__init__(loss)
        settings = {"temperature": 0.01, "mini_batch_size": 3, "margin_strategy": "absolute", "margin": 0.0, "contrast_anchors": True,
                    "contrast_positives": True, "gather_across_devices": False, "show_progress_bar": False, **more}
        for key, value in {**settings, "similarity_fct": torch.nn.CosineSimilarity(dim=-1), "cross_entropy_loss": torch.nn.CrossEntropyLoss()}.items():
            setattr(loss, key, value)
        return lambda: loss
    return {
        "pairs": (lambda: mnr(model), 2, None, {"loss": "MultipleNegativesRanking"}),
        "negatives": (lambda: mnr(model, scale=5.0), 4, None, {"loss": "MultipleNegativesRanking", "scale": 5}),
        "symmetric": (lambda: mnr(model, **both), 3, None, {"loss": "MultipleNegativesRanking", "symmetric": True}),
        "gist": (gist(temperature=0.1), 4, None, {"loss": "CachedGISTEmbed", "temperature": 0.1}),
        "gist-absolute": (gist(temperature=0.1, margin=0.3), 3, None, {"loss": "CachedGISTEmbed", "temperature": 0.1, "margin": 0.3}),
        "gist-relative": (gist(margin_strategy="relative", margin=0.2), 2, None,
                           {"loss": "CachedGISTEmbed", "marginStrategy": "relative", "margin": 0.2}),
        "margins": (lambda: losses.MarginMSELoss(model), 4, [row[:2] for row in TEACHER], {"loss": "MarginMSE"}),
        "scores": (lambda: losses.MarginMSELoss(model), 4, TEACHER, {"loss": "MarginMSE"}),
        "divergence": (lambda: losses.DistillKLDivLoss(model, temperature=2.0), 4, TEACHER, {"loss": "DistillKLDiv", "temperature": 2}),
        "cosent": (lambda: losses.CoSENTLoss(model), 2, SCORES, {"loss": "CoSENT"}),
        "angle": (lambda: losses.AnglELoss(model, scale=10.0), 2, SCORES, {"loss": "AnglE", "scale": 10}),
        "angle-negatives": (lambda: losses.AnglELoss(model), 3, None, {"loss": "AnglE"}),
        "cosine": (lambda: losses.CosineSimilarityLoss(model), 2, SCORES, {"loss": "CosineSimilarity"}),
        "triplet": (lambda: losses.TripletLoss(model, distance_metric=cosine, triplet_margin=0.4), 3, None, {"loss": "Triplet", "margin": 0.4}),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "embedding" / "losses.json")
    generator = torch.Generator().manual_seed(11)
    draw = lambda: torch.randn(GROUPS, BATCH, SIZE, generator=generator, dtype=torch.float64)
    vectors, guide = draw().round(decimals=3), draw().round(decimals=3)
    from sentence_transformers.sentence_transformer import losses
    model = Given()
    results = {}
    for name, (make, groups, labels, options) in cases(model).items():
        for dims in [None, [SIZE, 4, 2]]:
            given = [v.clone().requires_grad_() for v in vectors[:groups]]
            criterion = make()
            if options["loss"] == "CachedGISTEmbed":
                run = lambda reps: criterion.calculate_loss([[r] for r in reps], [[g] for g in guide[:groups]])
                if dims is None:
                    loss = run(given)
                else:
                    from sentence_transformers.sentence_transformer.losses.matryoshka import shrink
                    loss = sum(run([shrink(r, dim) for r in given]) for dim in dims)
            else:
                criterion = criterion if dims is None else losses.MatryoshkaLoss(model, criterion, dims)
                target = None if labels is None else torch.tensor(labels, dtype=torch.float64)
                loss = criterion([{"vectors": v} for v in given], target)
            loss.backward()
            more = {} if dims is None else {"matryoshkaDims": dims}
            results[name if dims is None else f"{name}-matryoshka"] = {
                "options": {**options, **more}, "groups": groups, "labels": labels, "loss": loss.item(),
                "gradients": [[[round(x, 9) for x in row] for row in v.grad.tolist()] for v in given]}
    write_json(parser.parse_args().out, {
        "versions": {**versions("torch"), **versions("sentence_transformers")}, "vectors": vectors.tolist(), "guide": guide.tolist(), **results})
    print({name: found["loss"] for name, found in results.items()})


if __name__ == "__main__":
    main()
