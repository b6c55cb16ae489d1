"""Reads event files that lowrank wrote in TensorBoard's own reader, and compares them with the metrics of the run.

    check_tensorboard.py LOGS RUN

LOGS: the folder of `--tensorboard`. RUN: the folder of the adapter, with metrics.jsonl. Needs tensorboard 2.21.0 alone. Prints one JSON
document; exit code 1 if anything differs.
"""
import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAMES = {"loss": "train/loss", "learningRate": "train/learning_rate", "gradientNorm": "train/grad_norm", "epoch": "train/epoch"}


def main():
    logs, run = sys.argv[1], pathlib.Path(sys.argv[2])
    read = EventAccumulator(logs)
    read.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    problems = []
    for field, tag in NAMES.items():
        found = [(event.step, event.value) for event in read.Scalars(tag)]
        if [step for step, _ in found] != [line["step"] for line in lines]:
            problems.append(f"{tag}: steps {[step for step, _ in found]}")
        elif not all(math.isclose(value, line[field], rel_tol=1e-6) for (_, value), line in zip(found, lines)):
            problems.append(f"{tag}: other values")
    evaluations = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"] if tag.startswith("eval/")}
    print(json.dumps({"steps": len(lines), "evaluations": evaluations, "problems": problems}, indent=2))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
