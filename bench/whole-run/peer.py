#!/usr/bin/env python3
"""What a user of PEFT writes: loads the model, trains LoRA on the rows, and saves the adapter.

    peer.py TASK CHECKPOINT ROWS.jsonl OUT --steps N --batch-size N --max-length N --threads N --attention {eager,sdpa}

Versions: ../train-step/requirements.txt.
"""
import argparse, json

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ENCODER = r".*encoder.*(query|key|value|dense)"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("task", choices=("causal-lm", "text-classification"))
for name in ("checkpoint", "rows", "out"):
    parser.add_argument(name)
for name in ("steps", "batch-size", "max-length", "threads"):
    parser.add_argument("--" + name, type=int, required=True)
parser.add_argument("--attention", required=True)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(42)
tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
rows = [json.loads(line) for line in open(args.rows)]
lora = {"r": 8, "lora_alpha": 16}
given = {"attn_implementation": args.attention, "dtype": torch.float32}
if args.task == "causal-lm":
    base = AutoModelForCausalLM.from_pretrained(args.checkpoint, **given)
    base.config.use_cache = False
    model = get_peft_model(base, LoraConfig(**lora, target_modules=LLAMA, task_type="CAUSAL_LM"))
else:
    base = AutoModelForSequenceClassification.from_pretrained(args.checkpoint, num_labels=2, **given)
    config = LoraConfig(**lora, target_modules=ENCODER, modules_to_save=["pooler", "classifier"], task_type="SEQ_CLS")
    model = get_peft_model(base, config)
labels = sorted({row["label"] for row in rows}) if args.task == "text-classification" else []

parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
model.train()
order = []
for _ in range(args.steps):
    if len(order) < args.batch_size:
        order = torch.randperm(len(rows)).tolist()
    batch, order = [rows[i] for i in order[:args.batch_size]], order[args.batch_size:]
    tokens = tokenizer([row["text"] for row in batch], truncation=True, max_length=args.max_length, padding=True, return_tensors="pt")
    if labels:
        targets = torch.tensor([labels.index(row["label"]) for row in batch])
    else:
        targets = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
    model(**tokens, labels=targets).loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
model.save_pretrained(args.out)
