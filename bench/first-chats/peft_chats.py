"""PEFT's part of run.py: the same chats and settings, and the loss of the same held-out answers."""
import json
import pathlib
import random
import sys
import time

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

REQUEST = json.loads(sys.argv[1])
SETTINGS, FOLDER = REQUEST["settings"], pathlib.Path(REQUEST["folder"])
torch.set_num_threads(REQUEST["threads"])
torch.manual_seed(42)
tokenizer = AutoTokenizer.from_pretrained(REQUEST["model"])


def examples(name):
    """Tokens of each chat, and which of them are learned: the answer, and what ends it."""
    for line in (FOLDER / name).read_text().splitlines():
        messages = json.loads(line)["messages"]
        question = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False).input_ids
        start = len(tokenizer(question, add_special_tokens=False).input_ids)
        yield ids, [-100] * start + ids[start:]


def batch(rows):
    width = max(len(ids) for ids, _ in rows)
    pad = lambda values, filler: torch.tensor([list(v) + [filler] * (width - len(v)) for v in values])  # noqa: E731
    ids, labels = zip(*rows)
    return {"input_ids": pad(ids, 0), "labels": pad(labels, -100), "attention_mask": pad([[1] * len(i) for i in ids], 0)}


@torch.no_grad()
def evaluate(model, rows):
    model.eval()
    total = count = 0
    for row in rows:
        given = batch([row])
        targets = int((given["labels"][:, 1:] != -100).sum())
        total += float(model(**given).loss) * targets
        count += targets
    model.train()
    return total / count, count


model = AutoModelForCausalLM.from_pretrained(REQUEST["model"], dtype=torch.float32)
train, held_out = list(examples("chats.jsonl")), list(examples("held-out.jsonl"))
ours = PeftModel.from_pretrained(model, str(FOLDER / "adapter"))
print("PEFT, with lowrank's adapter: %.4f" % evaluate(ours, held_out)[0], flush=True)
model = ours.unload()
config = LoraConfig(r=SETTINGS["rank"], lora_alpha=SETTINGS["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, config)
before, count = evaluate(model, held_out)
size = SETTINGS["batch-size"]
steps = SETTINGS["epochs"] * -(-len(train) // size)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=SETTINGS["learning-rate"], weight_decay=0)
schedule = get_cosine_schedule_with_warmup(optimizer, round(SETTINGS["warmup-ratio"] * steps), steps)
started = time.time()
for _ in range(SETTINGS["epochs"]):
    random.Random(42).shuffle(train)
    for at in range(0, len(train), size):
        model(**batch(train[at:at + size])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
print(f"PEFT: {time.time() - started:.0f} s of training, {steps} steps", flush=True)
print("PEFT, loss on held-out answers: %.4f -> %.4f over %d tokens" % (before, evaluate(model, held_out)[0], count))
