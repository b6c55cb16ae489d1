"""Activated LoRA (alora_invocation_tokens) as PEFT computes it: logits, and steps of training, over the tiny Qwen2 of exporters.py.

    alora.py [--out tests/golden/alora]

The numbers belong to tests/golden/models/qwen2-optimum. Needs requirements.txt.
"""
import argparse
import pathlib

import torch

from common import GOLDEN, adapt, adamw_steps, fresh, loss_of, make_batches, save_adapter, save_tensors, tensors, trainable, versions, write_json
from exporters import build

SEED, STEPS, RATE = 29, 6, 5e-3
TOKENS = [7, 31]
PROMPTS = {
    "middle": [12, 9, 44, 80, 7, 31, 5, 60, 3],
    "twice": [7, 31, 9, 44, 7, 31, 60, 7, 3],
    "absent": [12, 9, 44, 80, 31, 7, 5, 60, 3],
    "first": [7, 31, 44, 80, 31, 7, 5, 60, 3],
}
NEW = 8
# Where the invocation stands in each row of the batches: none is left out, first, twice.
PLACES = [[[3], [0], [], [1, 5]], [[5], [], [4, 9], [6]], [[20], [], [2]]]


def adapted(dtype, b_std):
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "lm_head"]
    model = adapt(build("qwen2"), SEED, b_std, name="tiny-qwen2", r=3, lora_alpha=6, target_modules=targets, alora_invocation_tokens=TOKENS)
    return model.to(dtype)


def batches():
    result = make_batches()
    for batch, places in zip(result, PLACES):
        for ids, labels, starts in zip(batch["inputIds"], batch["labels"], places):
            for start in starts:
                ids[start:start + len(TOKENS)] = TOKENS
                labels[start:start + len(TOKENS)] = [-100 if old == -100 else new for old, new in zip(labels[start:start + len(TOKENS)], TOKENS)]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "alora")
    out = fresh(parser.parse_args().out)
    narrow, wide = adapted(torch.float32, 0.3), adapted(torch.float64, 0.3)
    save_adapter(narrow, out / "adapter", save_embedding_layers=False)
    logits, texts = {}, {}
    for name, ids in PROMPTS.items():
        with torch.no_grad():
            logits[name] = wide(input_ids=torch.tensor([ids])).logits[0, :, :64].float().contiguous()
            written = wide.generate(input_ids=torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=2)
        texts[name] = written[0, len(ids):].tolist()
    save_tensors(out / "logits.safetensors", logits)
    all_batches = batches()
    losses, norms = adamw_steps(trainable(wide).values(), lambda step: loss_of(wide, all_batches[step % len(all_batches)]), STEPS, lr=RATE)
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft"), "tokens": TOKENS, "prompts": PROMPTS, "texts": texts,
        "learningRate": RATE, "batches": all_batches, "losses": losses, "gradNorms": norms})
    print(texts, losses, norms)


if __name__ == "__main__":
    main()
