"""Measures of a search by sentence-transformers and ir_measures, and mined negatives, over fixed vectors.

    search.py [--out tests/golden/embedding/search.json]

Needs requirements.txt, but sentence-transformers==5.7.0; also ir_measures==0.4.3 with pytrec-eval-terrier.
"""
import argparse
import pathlib

import ir_measures
import torch
from ir_measures import AP, P, R, RR, Qrel, ScoredDoc, nDCG

from common import GOLDEN, versions, write_json

QUERIES, DOCUMENTS, SIZE, KS = 12, 40, 8, [1, 3, 10]


class Given:
    """A model whose vectors are given, by text."""
    similarity_fn_name = "cosine"

    def __init__(self, vectors):
        self.vectors = vectors
        self.model_card_data = type("Card", (), {"set_evaluation_metrics": lambda *_, **__: None})()

    def encode(self, texts, **_):
        found = torch.stack([torch.tensor(self.vectors[text], dtype=torch.float32) for text in texts])
        return torch.nn.functional.normalize(found)

    encode_query = encode_document = encode

    def similarity(self, a, b):
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a, b):
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(-1)

    device = torch.device("cpu")


class GivenReranker:
    """Scores by the product of the vectors' first halves."""

    def __init__(self, vectors):
        self.vectors = vectors

    def predict(self, pairs, **_):
        return torch.tensor([sum(a * b for a, b in zip(*(self.vectors[text][:4] for text in pair))) for pair in pairs])


MINING = [
    {}, {"range_min": 3}, {"range_max": 5, "num_negatives": 2}, {"max_score": 0.3}, {"min_score": 0.5},
    {"absolute_margin": 0.1}, {"relative_margin": 0.05}, {"relative_margin": 0.05, "range_min": 2, "max_score": 0.5},
    {"absolute_margin": 0.1, "reranker": True}, {"max_score": 0.2, "min_score": -0.5, "reranker": True},
]


def mining(vectors, grades):
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives
    pairs = [{"anchor": query, "positive": doc} for query, docs in grades.items() for doc, grade in docs.items() if grade >= 1]
    cases = []
    for i, options in enumerate(MINING):
        for form in ["n-tuple"] if i % 4 else ["triplet", "n-tuple", "labeled-list"]:
            given = dict(options)
            reranker = GivenReranker(vectors) if given.pop("reranker", False) else None
            found = mine_hard_negatives(
                Dataset.from_list(pairs), Given(vectors), corpus=[text for text in vectors if text[0] == "d"],
                cross_encoder=reranker, output_format=form, verbose=False, output_scores=form == "n-tuple", **given)
            cases.append({"options": options, "form": form, "columns": found.column_names, "records": [list(row.values()) for row in found]})
    return {"pairs": pairs, "mining": cases}


def measures(vectors, grades):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    model = Given(vectors)
    texts = lambda letter: {text: text for text in vectors if text[0] == letter}
    relevant = {query: {doc for doc, grade in docs.items() if grade >= 1} for query, docs in grades.items()}
    evaluator = InformationRetrievalEvaluator(
        texts("q"), texts("d"), relevant, accuracy_at_k=KS, precision_recall_at_k=KS, mrr_at_k=KS, ndcg_at_k=KS, map_at_k=KS)
    found = {key.removeprefix("cosine_"): value for key, value in evaluator(model).items()}
    qrels = [Qrel(query, doc, grade) for query, docs in grades.items() for doc, grade in docs.items()]
    run = []
    for query in texts("q"):
        scores = model.similarity(model.encode([query]), model.encode(list(texts("d"))))[0]
        run += [ScoredDoc(query, doc, score.item()) for doc, score in zip(texts("d"), scores)]
    wanted = [measure for k in KS for measure in (nDCG @ k, P @ k, R @ k, RR @ k)] + [AP]
    graded = {str(measure): value for measure, value in ir_measures.calc_aggregate(wanted, qrels, run).items()}
    return {"sentenceTransformers": {key: float(value) for key, value in found.items()}, "irMeasures": graded}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "embedding" / "search.json")
    generator = torch.Generator().manual_seed(5)
    names = [f"q{i}" for i in range(QUERIES)] + [f"d{i}" for i in range(DOCUMENTS)]
    vectors = dict(zip(names, torch.randn(len(names), SIZE, generator=generator).mul(1000).round().div(1000).tolist()))
    grades = {}
    for i in range(QUERIES):
        docs = torch.randperm(DOCUMENTS, generator=generator)[:1 + i % 4].tolist()
        grades[f"q{i}"] = {f"d{doc}": [1, 3, 2, 0][place] for place, doc in enumerate(docs)}
    from sentence_transformers.util import quantize_embeddings
    import numpy
    found = numpy.array([vectors[f"d{i}"] for i in range(DOCUMENTS)], dtype=numpy.float32)
    ranges = numpy.vstack((found[:9].min(axis=0), found[:9].max(axis=0)))
    quantized = {name: quantize_embeddings(found[9:], name, ranges=ranges).tolist() for name in ["int8", "uint8", "binary", "ubinary"]}
    write_json(parser.parse_args().out, {
        "versions": {**versions("torch"), **versions("sentence_transformers")}, "vectors": vectors, "grades": grades, "at": KS, **measures(vectors, grades), **mining(vectors, grades), "quantized": quantized})


if __name__ == "__main__":
    main()
