#!/usr/bin/env python3
"""The old model of the benchmark: Gemma 3 270M, tuned by TRL and PEFT. Reads one JSON request a line, and answers each with one JSON line.

    old_model.py SOURCE TRAINING.jsonl ADAPTER [--steps N]

SOURCE is gemma3-source of scripts/golden/graph_table.py. A request is {"messages", "max_tokens", "base": true for the model before tuning}.
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
    rows = [json.loads(line)["messages"] for line in pathlib.Path(data).read_text().splitlines()]
    pairs = Dataset.from_list([{"prompt": asked(row), "completion": f" {row[-1]['content']}"} for row in rows])
    settings = SFTConfig(output_dir=f"{folder}-run", num_train_epochs=1, max_steps=steps, per_device_train_batch_size=1, gradient_accumulation_steps=4, learning_rate=5e-4,
                         lr_scheduler_type="cosine", max_length=256, logging_steps=20, save_strategy="no", report_to=[],
                         seed=1, use_cpu=not torch.cuda.is_available(), bf16=False)
    trainer = SFTTrainer(model=model, args=settings, train_dataset=pairs, processing_class=tokenizer,
                         peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
    trainer.train()
    trainer.save_model(folder)


def answer(model, tokenizer, request):
    inputs = tokenizer(asked(request["messages"]), return_tensors="pt", truncation=True, max_length=600).to(model.device)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=request["max_tokens"], do_sample=False, pad_token_id=tokenizer.eos_token_id)
    new = out[0][inputs["input_ids"].shape[1]:]
    # The tuned model ends its answers. The other one goes on, and its first line counts.
    text = tokenizer.decode(new, skip_special_tokens=True).strip().split("\n")[0]
    return {"content": text, "prompt_tokens": inputs["input_ids"].shape[1], "completion_tokens": len(new)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("training")
    parser.add_argument("adapter")
    parser.add_argument("--steps", type=int, default=-1)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.source)
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
        request = json.loads(line)
        if request.get("base"):
            with model.disable_adapter():
                given = answer(model, tokenizer, request)
        else:
            given = answer(model, tokenizer, request)
        print(json.dumps(given), flush=True)


main()
