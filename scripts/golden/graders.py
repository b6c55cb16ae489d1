"""Similarities of texts, as rapidfuzz, sacrebleu, nltk and rouge-score compute them.
Usage: python scripts/golden/graders.py (needs rapidfuzz 3.14.6, sacrebleu 2.6.0, nltk 3.10.4 and rouge-score 0.1.2)"""

import importlib.metadata
import json
import pathlib
import random

import sacrebleu
from nltk.translate.gleu_score import sentence_gleu
from rapidfuzz import fuzz
from rouge_score import rouge_scorer

OUT = pathlib.Path(__file__).parents[2] / "tests/golden/graders/golden.json"
PINNED = {"rapidfuzz": "3.14.6", "sacrebleu": "2.6.0", "nltk": "3.10.4", "rouge_score": "0.1.2"}
ROUGE = ["rouge1", "rouge2", "rouge3", "rouge4", "rouge5", "rougeL"]

PAIRS = [
    ("The sea was calm.", "The sea was calm."),
    ("the SEA, was calm", "The sea was calm."),
    ("", ""),
    ("", "A good day."),
    ("A good day.", ""),
    ("x", "y"),
    ("a b", "a b"),
    ("The cat", "the cat sat on the mat and slept all day long in the sun"),
    ("Été à la mer — 海は静か", "Un été à la mer: 海は静かだった"),
    ("👍🏽 ok, 3.5% of $1,000.00 - 4-5", "👍 ok, 3.5 % of $1,000 - 4 - 5"),
    ("it&amp;s &quot;fine&quot; &lt;b&gt; <skipped>here-\nafter\nall", "it&s \"fine\" <b> hereafter all"),
    ("&amp;lt;", "&lt;"),
    ("word.Another,one 1.Two 2,000. ...", "word. Another, one 1. Two 2,000 ..."),
    ("one\n two\tthree \u00a0\u2003four\x1cfive\ufeffsix  ", " one two three four five six"),
    ("a a a b b c", "a b c a b c a"),
    ("the " * 40, "the " * 7),
    ("İstanbul Kelvin K ſ", "i̇stanbul kelvin k s"),
    ("under_score 3.14", "under score 3 14"),
]


def pairs():
    draw = random.Random(5)
    words = "the sea was calm and we sailed on, to a far shore. 3.5 don't—stop (now) \"yes\" 10-20 é 海".split()
    yield from PAIRS
    for _ in range(60):
        first = [draw.choice(words) for _ in range(draw.randrange(1, 40))]
        second = [word if draw.random() < 0.7 else draw.choice(words) for word in first if draw.random() < 0.9]
        yield " ".join(first), " ".join(second)


def main():
    for package, version in PINNED.items():
        assert importlib.metadata.version(package) == version, package
    scorer = rouge_scorer.RougeScorer(ROUGE)
    rows = []
    for text, wanted in pairs():
        scores = scorer.score(wanted, text)
        rows.append({
            "text": text,
            "wanted": wanted,
            "fuzzy_match": fuzz.ratio(text, wanted) / 100,
            "bleu": sacrebleu.sentence_bleu(text, [wanted]).score / 100,
            "gleu": sentence_gleu([wanted.split()], text.split()),
            **{f"rouge_{name[5:].lower()}": scores[name].fmeasure for name in ROUGE},
        })
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"versions": PINNED, "rows": rows}, indent=0, ensure_ascii=True) + "\n")


main()
