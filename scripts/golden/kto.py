"""TRL's KTOTrainer on union-3m: tokens and those of the KL term, ln(probability), the loss and its gradients, and steps with their rewards.

    kto.py [--out tests/golden/kto]

Needs requirements.txt, trl==1.16.0 and datasets==5.2.0. One batch has all rows, so that each step has the same ones. ../../tests/golden/README.md explains the fields.
"""
import argparse
import copy
import pathlib
import tempfile

import torch

import packed
from common import ADAMW, DATA, GOLDEN, UNION, adapt, fresh, save_adapter, save_tensors, trainable, union, versions, write_json
from dpo import CONFIG, tokenizer

SEED, STEPS, BETA, DESIRABLE, UNDESIRABLE, MAX_LENGTH = 23, 12, 0.2, 1.1, 0.3, 20
CAPTAIN = {"role": "user", "content": "Who is the captain?"}
TEXTS = [
    {"prompt": "And the king said", "completion": ", I will go.", "label": True},
    {"prompt": "The captain stood on", "completion": "the ship, and was gone in the night.", "label": True},
    {"prompt": "In the morn", "completion": "ing they rose.", "label": True},
    {"prompt": "The whale", "completion": " was seen by none of the men, who looked at the sea the whole day.", "label": False},
    {"prompt": "The men", "completion": " went down to the river.", "label": True},
]
CHATS = [
    {"prompt": [CAPTAIN], "completion": [{"role": "assistant", "content": "Ahab."}], "label": True},
    {"prompt": [CAPTAIN], "completion": [{"role": "assistant", "content": "He is the one who hunts the whale."}], "label": False},
]


def make_trainer(model, rows, work, batch=None, **options):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    args = KTOConfig(
        output_dir=str(work), per_device_train_batch_size=batch or len(rows), max_steps=STEPS, learning_rate=ADAMW["lr"], lr_scheduler_type="constant",
        warmup_steps=0, weight_decay=ADAMW["weightDecay"], max_grad_norm=ADAMW["maxGradNorm"], adam_beta1=ADAMW["betas"][0], adam_beta2=ADAMW["betas"][1],
        adam_epsilon=ADAMW["eps"], beta=BETA, desirable_weight=DESIRABLE, undesirable_weight=UNDESIRABLE, logging_steps=1, logging_first_step=True,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, max_length=options.pop("max_length", None),
        optim="adamw_torch", disable_tqdm=True, seed=SEED)
    return KTOTrainer(model=model, args=args, train_dataset=Dataset.from_list([dict(row) for row in rows]), processing_class=tokenizer(), **options)


def tokens_of(trainer):
    """What TRL's collator makes of the rows: ids, and the first token of the answer; the same with the answer of another row."""
    most = trainer.args.max_length
    side = lambda row, name: {"ids": (row["prompt_ids"] + row[name])[:most], "start": len(row["prompt_ids"])}
    return [{"own": side(row, "completion_ids"), "other": side(row, "KL_completion_ids")} for row in trainer.train_dataset]


def steps_of(trainer):
    trainer.train()
    keys = {"loss": "loss", "grad_norm": "gradNorm", "rewards/margins": "rewards/margins", "rewards/chosen": "rewards/chosen",
            "rewards/rejected": "rewards/rejected", "kl": "kl"}
    return [{own: entry[key] for key, own in keys.items() if key in entry} for entry in trainer.state.log_history if "loss" in entry]


def main():
    from peft import LoraConfig
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "kto")
    out = fresh(parser.parse_args().out)
    with tempfile.TemporaryDirectory() as work:
        lora = LoraConfig(task_type="CAUSAL_LM", **CONFIG)
        new = lambda rows, **options: make_trainer(union(), rows, work, peft_config=copy.deepcopy(lora), **options)
        tokens = {"texts": tokens_of(new(TEXTS)), "chats": tokens_of(new(CHATS)), "cut": tokens_of(new(TEXTS, max_length=MAX_LENGTH)),
                  "slices": tokens_of(new(TEXTS, batch=2))}

        # One loss with its gradients: the policy has B, and the reference is the base.
        trainer = new(TEXTS)
        trainer.model.load_state_dict(adapt(union(), SEED, 0.3, **CONFIG).state_dict(), strict=False)
        # Some steps on the same answers: the estimate of KL is above 0.
        optimizer = torch.optim.AdamW(trainable(trainer.model).values(), lr=ADAMW["lr"])
        for _ in range(3):
            own = trainer.data_collator([trainer.train_dataset[i] for i in range(len(TEXTS))])
            labels = own["input_ids"].masked_fill(own["completion_mask"] == 0, -100)
            optimizer.zero_grad()
            trainer.model(input_ids=own["input_ids"], attention_mask=own["attention_mask"], labels=labels).loss.backward()
            optimizer.step()
        save_adapter(trainer.model, out / "adapter-init")
        init = copy.deepcopy({k: p.data for k, p in trainable(trainer.model).items()})
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(TEXTS))])
        reference = [values.tolist() for values in trainer.compute_ref_log_probs(trainer.model, batch)]
        trainer.model.zero_grad(set_to_none=True)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        save_tensors(out / "gradients.safetensors", {k: p.grad for k, p in trainable(trainer.model).items()})
        metrics = {k: v[-1] for k, v in trainer._metrics["train"].items() if k.startswith(("rewards/", "kl"))}

        started = new(TEXTS)
        started.model.load_state_dict(adapt(union(), SEED, 0, **CONFIG).state_dict(), strict=False)
        save_adapter(started.model, out / "adapter-zero")
        steps = steps_of(started)
        begun = adapt(union(), SEED, 0.3, **CONFIG).train()
        begun.load_state_dict(init, strict=False)
        continued = steps_of(make_trainer(begun, TEXTS, work))
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft", "trl"), "seed": SEED, "adamw": ADAMW, "beta": BETA, "desirableWeight": DESIRABLE,
        "undesirableWeight": UNDESIRABLE, "maxLength": MAX_LENGTH, "rows": {"texts": TEXTS, "chats": CHATS}, "tokens": tokens, "reference": reference,
        "loss": loss.item(), "metrics": metrics, "started": steps, "continued": continued})
    packed.pack(out, "kto")
    print(loss.item(), metrics, [step["loss"] for step in steps], [step["loss"] for step in continued], sep="\n")


if __name__ == "__main__":
    main()
