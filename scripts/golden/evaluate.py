"""Metrics of predictions, as scikit-learn, rouge-score and sacrebleu compute them.
Usage: python scripts/golden/evaluate.py (needs scikit-learn, rouge-score and sacrebleu)"""

import json
import pathlib
import random

from rouge_score import rouge_scorer
from sacrebleu.metrics import CHRF
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

OUT = pathlib.Path(__file__).parents[2] / "tests/golden/evaluate"

TEXTS = [
    ("The sea was calm.", "The sea was calm."),
    ("the SEA, was calm", "The sea was calm."),
    ("The sea was not calm at all, it was grim.", "The sea was calm, and the day was good."),
    ("", "A good day."),
    ("A good day.", "A"),
    ("x", "y"),
    ("Été à la mer — 海は静か", "Un été à la mer: 海は静かだった"),
    ("a a a b b c", "a b c a b c a"),
    ("one\n two\tthree  ", " one two three"),
    ("👍🏽 ok", "👍 ok"),
    ("under_score 3.14", "under score 3 14"),
]


def labels(count, seed):
    draw = random.Random(seed)
    truth = [draw.randrange(count) for _ in range(60)]
    logits = [[round(draw.gauss(1.2 if i == own else 0, 1), 3) for i in range(count)] for own in truth]
    predicted = [own.index(max(own)) for own in logits]
    metrics = {
        "accuracy": accuracy_score(truth, predicted),
        "f1": f1_score(truth, predicted, average="macro"),
        **{f"f1/label {i}": score for i, score in enumerate(f1_score(truth, predicted, average=None))},
    }
    if count == 2:
        metrics["auc"] = roc_auc_score(truth, [b - a for a, b in logits])
    return {"truth": truth, "logits": logits, "metrics": metrics}


rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
chrf = CHRF()
golden = {
    "labels": [labels(2, 1), labels(5, 2)],
    "texts": [
        {
            "text": text,
            "wanted": wanted,
            "rougeL": rouge.score(wanted, text)["rougeL"].fmeasure,
            "chrF": chrf.sentence_score(text, [wanted]).score,
        }
        for text, wanted in TEXTS
    ],
    "corpusChrF": chrf.corpus_score([text for text, _ in TEXTS], [[wanted for _, wanted in TEXTS]]).score,
}
OUT.mkdir(exist_ok=True)
(OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
