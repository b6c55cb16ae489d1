"""Reads the model cards of adapters that lowrank trained with huggingface_hub.

    check_card.py FOLDER...

FOLDER: an adapter folder with README.md. Prints one JSON document; exit code 1 if anything is wrong.
"""
import json
import pathlib
import sys

from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

PIPELINES = {
    "CAUSAL_LM": ("text-generation",),
    "SEQ_CLS": ("text-classification",),
    "TOKEN_CLS": ("token-classification",),
    "SEQ_2_SEQ_LM": ("text2text-generation",),
    "FEATURE_EXTRACTION": ("feature-extraction",),
    # PEFT has no type for images, and none that Whisper can have.
    None: ("image-classification", "automatic-speech-recognition"),
}


def check(folder):
    card = ModelCard.load(folder / "README.md")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf8"))
    problems = []
    wanted = {"library_name": ("peft",), "pipeline_tag": PIPELINES[config["task_type"]]}
    for field, values in wanted.items():
        if getattr(card.data, field) not in values:
            problems.append(f"{field} is {getattr(card.data, field)}, not {' or '.join(values)}")
    if "lora" not in card.data.tags:
        problems.append(f"tags: {card.data.tags}")
    results = card.data.eval_results or []
    stored = metadata_load(folder / "README.md").get("metrics", [])
    if [result.metric_type for result in results] != stored:
        problems.append(f"model-index has {results}, metrics {stored}")
    # What huggingface_hub writes again is what it read.
    if metadata_load(folder / "README.md") != ModelCard(str(card)).data.to_dict():
        problems.append("not the same after huggingface_hub wrote it")
    return {"problems": problems, "metadata": card.data.to_dict(), "results": len(results)}


def main():
    report = {folder: check(pathlib.Path(folder)) for folder in sys.argv[1:]}
    print(json.dumps(report, indent=2))
    sys.exit(any(entry["problems"] for entry in report.values()))


if __name__ == "__main__":
    main()
