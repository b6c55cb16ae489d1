"""TRL's distillation on union-3m: for each beta the loss on fixed texts, its gradients and a second step.

    distill.py [--out tests/golden/distill]

Needs requirements.txt, trl==1.16.0 and datasets==5.2.0. The student is the model with an adapter, the teacher the model itself. "server" is
ServerDistillationTrainer, whose teacher gives the log-probability of each token alone. ../../tests/golden/README.md explains the fields.
"""
import argparse
import pathlib
import tempfile

import torch

from common import ADAMW, GOLDEN, UNION, adapt, fresh, save_adapter, save_tensors, trainable, union, versions, write_json

SEED, TEMPERATURE, LIMIT = 37, 0.8, 9
CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"]}
PROMPTS = [[5, 17, 230, 44, 9], [61, 12, 8], [90, 3]]
LENGTHS = [9, 4, 6]
BETAS = [0.0, 0.3, 0.5, 1.0]


def make_trainer(model, work, beta):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer
    args = DistillationConfig(output_dir=str(work), per_device_train_batch_size=3, max_completion_length=LIMIT, temperature=TEMPERATURE, beta=beta,
                              report_to="none", use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, seed=SEED)
    return DistillationTrainer(model=model, teacher_model=union(), args=args, train_dataset=Dataset.from_list([{"prompt": "The"}] * 3),
                               processing_class=AutoTokenizer.from_pretrained(UNION))


@torch.no_grad()
def inputs():
    torch.manual_seed(SEED)
    model = union().eval()
    rows = []
    for prompt, n in zip(PROMPTS, LENGTHS):
        ids = list(prompt)
        while len(ids) < len(prompt) + n:
            ids.append(int(torch.multinomial(torch.softmax(model(torch.tensor([ids])).logits[0, -1], -1), 1)))
        rows.append((prompt, ids[len(prompt):]))
    width = max(map(len, PROMPTS))
    pad = lambda values, size, left: torch.tensor([0] * (size - len(values)) * left + values + [0] * (size - len(values)) * (not left))
    return rows, {
        "prompt_ids": torch.stack([pad(prompt, width, True) for prompt, _ in rows]),
        "prompt_mask": torch.stack([pad([1] * len(prompt), width, True) for prompt, _ in rows]),
        "completion_ids": torch.stack([pad(ids, LIMIT, False) for _, ids in rows]),
        "completion_mask": torch.stack([pad([1] * len(ids), LIMIT, False) for _, ids in rows]),
        "num_items_in_batch": torch.tensor(float(sum(LENGTHS))),
    }


def log_probabilities(model, batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -LIMIT - 1:-1]
    return torch.log_softmax(logits, -1)


def server_loss(model, batch, teacher):
    from trl.experimental.server_distillation import ServerDistillationTrainer
    trainer = ServerDistillationTrainer.__new__(ServerDistillationTrainer)
    trainer.beta, trainer.loss_add_tail, trainer.reverse_kl_top_1_mode, trainer.loss_top_k = 1.0, True, "sampled", 1
    labels = torch.where(batch["completion_mask"].bool(), batch["completion_ids"], -100)
    # With beta 1 the teacher's likeliest token is not asked for.
    result = {"actual_logprobs": teacher, "topk_logprobs": teacher.unsqueeze(-1), "topk_token_ids": batch["completion_ids"].unsqueeze(-1)}
    return trainer._compute_server_sparse_top_1_divergence_loss(
        teacher_result=result, student_log_probs=log_probabilities(model, batch), completion_tokens=batch["completion_ids"], labels=labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "distill")
    out = fresh(parser.parse_args().out)
    rows, batch = inputs()
    with torch.no_grad():
        taught = log_probabilities(union().eval(), batch).gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
    cells, gradients = [], {}
    with tempfile.TemporaryDirectory() as work:
        for name in [*BETAS, "server"]:
            student = adapt(union(), SEED, 1.5, **CONFIG)
            if not cells:
                save_adapter(student, out / "adapter-init")
            if name == "server":
                loss_of = lambda: server_loss(student, batch, taught)
            else:
                trainer = make_trainer(student.train(), work, name)
                trainer.current_gradient_accumulation_steps = 1
                loss_of = lambda: trainer.compute_loss(trainer.model, batch)
            parameters = trainable(student)
            optimizer = torch.optim.AdamW(parameters.values(), lr=ADAMW["lr"], weight_decay=ADAMW["weightDecay"])
            losses, norms = [], []
            for step in range(2):
                optimizer.zero_grad()
                loss = loss_of()
                loss.backward()
                if step == 0:
                    gradients.update({f"{name}/{k}": p.grad.clone() for k, p in parameters.items()})
                losses.append(loss.item())
                norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), ADAMW["maxGradNorm"]).item())
                optimizer.step()
            cells.append({"name": str(name), "losses": losses, "gradNorms": norms})
            print(cells[-1])
    save_tensors(out / "gradients.safetensors", gradients)
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft", "trl"), "seed": SEED, "adamw": ADAMW, "temperature": TEMPERATURE,
        "rows": [{"prompt": prompt, "completion": ids} for prompt, ids in rows],
        "teacher": [row[:len(ids)].tolist() for row, (_, ids) in zip(taught, rows)], "cells": cells})


if __name__ == "__main__":
    main()
