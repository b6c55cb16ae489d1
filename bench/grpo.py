"""TRL's side of bench/grpo.mjs: GRPOTrainer on the CPU takes a step for each line on stdin, and answers with its times as JSON.

    grpo.py SETTINGS   JSON with source, threads, prompts, texts, tokens

Needs torch, transformers, peft, datasets and trl 1.16.
"""
import json
import sys
import tempfile
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
times = {}


def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


class Turns(TrainerCallback):
    """A step begins with a line on stdin, and ends with an answer."""

    def on_step_begin(self, args, state, control, **_):
        if not sys.stdin.readline():
            sys.exit(0)
        times.update(start=time.perf_counter())

    def on_pre_optimizer_step(self, args, state, control, **_):
        times.update(learned=time.perf_counter())

    def on_step_end(self, args, state, control, **_):
        now = time.perf_counter()
        sampling = times["sampling"]
        parts = {"sampling": sampling, "gradients": times["learned"] - times["start"] - sampling, "optimizer": now - times["learned"]}
        millis = {name: 1000 * seconds for name, seconds in parts.items()}
        print(json.dumps({"parts": millis, "step": 1000 * (now - times["start"]), "tokens": times["tokens"], "peak": peak()}), flush=True)


class Timed(GRPOTrainer):
    def _generate_single_turn(self, *args, **kwargs):
        start = time.perf_counter()
        result = super()._generate_single_turn(*args, **kwargs)
        times.update(sampling=time.perf_counter() - start, tokens=sum(map(len, result[0])))
        return result


def alternate(completions, **_):
    return [float(i % 2) for i in range(len(completions))]


rows = len(given["prompts"]) * given["texts"]
with tempfile.TemporaryDirectory() as work:
    config = GRPOConfig(
        output_dir=work, per_device_train_batch_size=rows, num_generations=given["texts"], max_completion_length=given["tokens"],
        generation_kwargs={"min_new_tokens": given["tokens"]}, max_steps=1000, report_to="none", use_cpu=True, bf16=False, fp16=False,
        gradient_checkpointing=False, learning_rate=1e-5, save_strategy="no", logging_strategy="no", disable_tqdm=True)
    model = AutoModelForCausalLM.from_pretrained(given["source"], dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    Timed(
        model=model, reward_funcs=alternate, args=config, train_dataset=Dataset.from_list([{"prompt": text} for text in given["prompts"]]),
        processing_class=AutoTokenizer.from_pretrained(given["source"]), callbacks=[Turns()],
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"),
    ).train()
