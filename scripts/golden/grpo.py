"""TRL's GRPOTrainer on union-3m: advantages of rewards, and for each loss type and beta the loss, its gradients and a second iteration.

    grpo.py [--out tests/golden/grpo]

Needs requirements.txt, trl==1.16.0 and datasets==5.2.0. The completions are fixed, so that only TRL's loss is asked. ../../tests/golden/README.md
explains the fields.
"""
import argparse
import copy
import pathlib
import tempfile

import torch

from common import ADAMW, GOLDEN, UNION, adapt, fresh, save_adapter, save_tensors, trainable, union, versions, write_json

SEED, TEMPERATURE, LIMIT = 31, 0.9, 9
CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"]}
LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]
# Prompt tokens, then the completions: two groups of four. A completion of LIMIT tokens without token 1 was cut.
PROMPTS = [[5, 17, 230, 44, 9], [61, 12, 8]]
LENGTHS = [[9, 3, 6, 8], [2, 9, 7, 5]]
REWARDS = [[1.0, 0.25, 0.0, 0.5], [0.2, 0.9, 0.4, 0.4]]


def make_trainer(model, work, **options):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    args = GRPOConfig(
        output_dir=str(work), per_device_train_batch_size=8, num_generations=4, max_completion_length=LIMIT, temperature=TEMPERATURE, report_to="none",
        use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, epsilon=0.2, epsilon_high=0.3, num_iterations=2, learning_rate=ADAMW["lr"],
        seed=SEED, **options)
    tokenizer = AutoTokenizer.from_pretrained(UNION)
    return GRPOTrainer(model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
                       train_dataset=Dataset.from_list([{"prompt": "The"}] * 8), processing_class=tokenizer)


def inputs(old, reference, advantages, mask_truncated):
    generator = torch.Generator().manual_seed(SEED)
    rows = [(prompt, torch.randint(3, 400, (n,), generator=generator).tolist(), n == LIMIT)
            for prompt, lengths in zip(PROMPTS, LENGTHS) for n in lengths]
    width = max(len(prompt) for prompt in PROMPTS)
    pad = lambda values, size, left: torch.tensor([0] * (size - len(values)) * left + values + [0] * (size - len(values)) * (not left))
    completion_mask = torch.stack([pad([int(not (mask_truncated and cut))] * len(ids), LIMIT, False) for _, ids, cut in rows])
    batch = {
        "prompt_ids": torch.stack([pad(prompt, width, True) for prompt, _, _ in rows]),
        "prompt_mask": torch.stack([pad([1] * len(prompt), width, True) for prompt, _, _ in rows]),
        "completion_ids": torch.stack([pad(ids, LIMIT, False) for _, ids, _ in rows]),
        "completion_mask": completion_mask, "num_items_in_batch": completion_mask.sum(), "advantages": advantages,
    }
    if old is not None:
        batch.update(old_per_token_logps=old, ref_per_token_logps=reference)
    return rows, batch


def logps_of(trainer, batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], (batch["completion_ids"] > 0).int()], 1)
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, LIMIT)[0]


def advantages_of(rewards, scale):
    """As in GRPOTrainer._generate_and_score_completions."""
    from trl.trainer.utils import nanstd
    grouped = rewards.view(-1, 4)
    centered = rewards - grouped.nanmean(1).repeat_interleave(4)
    std = nanstd(grouped, dim=1).repeat_interleave(4) if scale == "group" else nanstd(rewards).expand_as(rewards)
    return centered if scale == "none" else centered / (std + 1e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "grpo")
    out = fresh(parser.parse_args().out)
    rewards = torch.tensor(REWARDS).flatten()
    advantages = {scale: advantages_of(rewards, scale) for scale in ("group", "batch", "none")}
    cells, gradients, first = [], {}, {}
    with tempfile.TemporaryDirectory() as work:
        for loss_type in LOSS_TYPES:
            for beta in (0.0, 0.04):
                mask_truncated = beta > 0
                trainer = make_trainer(adapt(union(), SEED, 0.3, **CONFIG).train(), work, loss_type=loss_type, beta=beta)
                if not first:
                    save_adapter(trainer.model, out / "adapter-init")
                rows, batch = inputs(None, None, advantages["group"], mask_truncated)
                logps = logps_of(trainer, batch)
                with trainer.model.disable_adapter():
                    reference = logps_of(trainer, batch)
                # Old log-probabilities so far away that the ratios of many tokens are clipped.
                old = logps + 0.4 * torch.randn(logps.shape, generator=torch.Generator().manual_seed(SEED + 1))
                first.setdefault("old", old), first.setdefault("reference", reference)
                _, batch = inputs(old, reference, advantages["group"], mask_truncated)
                trainer.current_gradient_accumulation_steps = 1
                trainer.args.steps_per_generation = 1
                parameters = trainable(trainer.model)
                optimizer = torch.optim.AdamW(parameters.values(), lr=ADAMW["lr"], weight_decay=ADAMW["weightDecay"])
                losses, norms = [], []
                for iteration in range(2):
                    optimizer.zero_grad()
                    loss = trainer._compute_loss(trainer.model, batch)
                    loss.backward()
                    if iteration == 0:
                        gradients.update({f"{loss_type}/{beta}/{k}": p.grad.clone() for k, p in parameters.items()})
                    losses.append(loss.item())
                    norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), ADAMW["maxGradNorm"]).item())
                    optimizer.step()
                clipped = (logps - old).exp()
                share = ((clipped < 0.8) | (clipped > 1.3))[batch["completion_mask"] > 0].float().mean().item()
                cells.append({"lossType": loss_type, "beta": beta, "maskTruncated": mask_truncated, "losses": losses, "gradNorms": norms, "outside": share})
                print(cells[-1])
    save_tensors(out / "gradients.safetensors", gradients)
    lists = lambda values: [row[:len(ids)].tolist() for row, (_, ids, _) in zip(values, rows)]
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft", "trl"), "seed": SEED, "adamw": ADAMW, "temperature": TEMPERATURE, "maxCompletionLength": LIMIT,
        "rewards": REWARDS, "advantages": {k: v.tolist() for k, v in advantages.items()},
        "rows": [{"prompt": prompt, "completion": ids, "isTruncated": cut} for prompt, ids, cut in rows],
        "old": lists(first["old"]), "reference": lists(first["reference"]), "cells": cells})


if __name__ == "__main__":
    main()
