#!/usr/bin/env python3
"""The old model of the benchmark: Gemma 3 270M, tuned by TRL and PEFT. Reads one JSON list of requests a line, and answers each list with one JSON line.

    old_model.py SOURCE TRAINING.jsonl ADAPTER [--steps N]

SOURCE is gemma3-source of scripts/golden/graph_table.py. A request is {"messages", "max_tokens", "base": true for the model before tuning}; all of a list are for the same model.
"""
import argparse
import json
import pathlib
import sys

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def asked(messages):
    return "".join(f"{message['content']}\n" for message in messages if message["role"] != "assistant") + "Answer:"


def tune(model, tokenizer, data, folder, steps):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    rows = [json.loads(line)["messages"] for line in pathlib.Path(data).read_text().strip().split("\n")]
    pairs = Dataset.from_list([{"prompt": asked(row), "completion": f" {row[-1]['content']}"} for row in rows])
    settings = SFTConfig(output_dir=f"{folder}-run", num_train_epochs=1, max_steps=steps, per_device_train_batch_size=8, gradient_checkpointing=False, learning_rate=5e-4,
                         lr_scheduler_type="cosine", max_length=256, logging_steps=10, save_strategy="steps", save_steps=50, report_to=[],
                         seed=1, use_cpu=not torch.cuda.is_available(), bf16=False)
    trainer = SFTTrainer(model=model, args=settings, train_dataset=pairs, processing_class=tokenizer,
                         peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
    trainer.train(resume_from_checkpoint=any(pathlib.Path(f"{folder}-run").glob("checkpoint-*")))
    trainer.save_model(folder)


def answer(model, tokenizer, requests):
    texts = [asked(request["messages"]) for request in requests]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=600).to(model.device)
    most = max(request["max_tokens"] for request in requests)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    given = []
    for request, row, mask in zip(requests, out[:, inputs["input_ids"].shape[1]:], inputs["attention_mask"]):
        new = row[:request["max_tokens"]].tolist()
        ends = next((i for i, token in enumerate(new) if token in (tokenizer.eos_token_id, tokenizer.pad_token_id)), None)
        # The tuned model ends its answers. The other one goes on, and its first line counts.
        text = tokenizer.decode(new, skip_special_tokens=True).strip().split("\n")[0]
        given.append({"content": text, "finish": "length" if ends is None else "stop", "prompt_tokens": int(mask.sum()),
                      "completion_tokens": len(new) if ends is None else ends + 1})
    return given


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("training")
    parser.add_argument("adapter")
    parser.add_argument("--steps", type=int, default=-1)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.source, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    load = lambda: AutoModelForCausalLM.from_pretrained(options.source, dtype=torch.float32)  # noqa: E731
    if not pathlib.Path(options.adapter, "adapter_config.json").exists():
        # What the trainer prints must not be read as an answer.
        out, sys.stdout = sys.stdout, sys.stderr
        tune(load(), tokenizer, options.training, options.adapter, options.steps)
        sys.stdout = out
    model = PeftModel.from_pretrained(load(), options.adapter).eval()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        requests = json.loads(line)
        if requests[0].get("base"):
            with model.disable_adapter():
                given = answer(model, tokenizer, requests)
        else:
            given = answer(model, tokenizer, requests)
        print(json.dumps(given), flush=True)


main()
