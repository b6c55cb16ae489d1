"""TRL's DPOTrainer on union-3m: tokens, ln(probability) of both answers, the loss and its gradients, and steps with their rewards.

    dpo.py [--out tests/golden/dpo]

Needs requirements.txt, trl==1.16.0 and datasets==5.2.0. The adapter of `started` begins with B of zeros, so TRL's reference is the base; that of
`continued` begins with adapter-init, whose copy is the reference. ../../tests/golden/README.md explains the fields.
"""
import argparse
import copy
import pathlib
import tempfile

import torch
import torch.nn.functional as F

import packed
from common import ADAMW, DATA, GOLDEN, UNION, adapt, fill_b, fresh, save_adapter, save_tensors, trainable, union, versions, write_json

SEED, STEPS, BETA, SMOOTHING, MAX_LENGTH = 21, 12, 0.1, 0.2, 24
CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
CAPTAIN = {"role": "user", "content": "Who is the captain?"}
SYSTEM = {"role": "system", "content": "Answer in few words."}


def said(text):
    return {"role": "assistant", "content": text}


TEXTS = [
    {"prompt": "And the king said", "chosen": ", I will go.", "rejected": " nothing at all to the people of the land."},
    {"prompt": "The captain stood on", "chosen": " the deck.", "rejected": "the ship, and was gone in the night."},
    {"prompt": "In the morn", "chosen": "ing they rose.", "rejected": "ing they went down to the river with their flocks."},
    {"prompt": "The whale", "chosen": " came.", "rejected": " was seen by none of the men, who looked at the sea the whole day and all of the night."},
]
FORMS = {
    "texts": TEXTS,
    "implicit-texts": [
        {"chosen": "And the king said, I will go.", "rejected": "And the king said, I was not there."},
        {"chosen": "The captain stood on the deck.", "rejected": "The captain stood on their ship."},
        {"chosen": "In the morning", "rejected": "In the mornings"},
    ],
    "chats": [
        {"prompt": [CAPTAIN], "chosen": [said("Ahab.")], "rejected": [said("He is the one who hunts the whale.")]},
        {"prompt": [SYSTEM, CAPTAIN], "chosen": [said("Ahab is.")], "rejected": [said("I will not say it.")]},
    ],
    "implicit-chats": [
        {"chosen": [CAPTAIN, said("Ahab.")], "rejected": [CAPTAIN, said("The king.")]},
        {"chosen": [SYSTEM, CAPTAIN, said("Ahab."), {"role": "user", "content": "And the king?"}, said("None.")],
         "rejected": [SYSTEM, CAPTAIN, said("Ahab."), {"role": "user", "content": "And the king?"}, said("There is none on the ship.")]},
    ],
}


def tokenizer():
    from transformers import AutoTokenizer
    own = AutoTokenizer.from_pretrained(UNION)
    own.chat_template = (DATA / "chat.jinja").read_text(encoding="utf8")
    return own


def make_trainer(model, rows, work, **options):
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer
    from trl.data_utils import maybe_extract_prompt

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    args = DPOConfig(
        output_dir=str(work), per_device_train_batch_size=len(rows), max_steps=STEPS, learning_rate=ADAMW["lr"], lr_scheduler_type="constant",
        warmup_steps=0, weight_decay=ADAMW["weightDecay"], max_grad_norm=ADAMW["maxGradNorm"], adam_beta1=ADAMW["betas"][0], adam_beta2=ADAMW["betas"][1],
        adam_epsilon=ADAMW["eps"], beta=BETA, logging_steps=1, logging_first_step=True, save_strategy="no", report_to="none", use_cpu=True, bf16=False, fp16=False,
        gradient_checkpointing=False, max_length=options.pop("max_length", None), optim="adamw_torch", disable_tqdm=True, seed=SEED)
    return InOrder(model=model, args=args, train_dataset=Dataset.from_list([maybe_extract_prompt(dict(row)) for row in rows]),
                   processing_class=tokenizer(), **options)


def tokens_of(trainer):
    """What TRL's collator makes of the rows: ids, and the first token of the answer."""
    side = lambda row, name: {"ids": (row["prompt_ids"] + row[f"{name}_ids"])[:trainer.args.max_length], "start": len(row["prompt_ids"])}
    return [{name: side(row, name) for name in ("chosen", "rejected")} for row in trainer.train_dataset]


def batch_of(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


def steps_of(trainer):
    trainer.train()
    keys = {"loss": "loss", "grad_norm": "gradNorm", "rewards/accuracies": "rewards/accuracies", "rewards/margins": "rewards/margins",
            "rewards/chosen": "rewards/chosen", "rewards/rejected": "rewards/rejected"}
    return [{own: entry[key] for key, own in keys.items()} for entry in trainer.state.log_history if "loss" in entry]


def main():
    from peft import LoraConfig
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "dpo")
    out = fresh(parser.parse_args().out)
    with tempfile.TemporaryDirectory() as work:
        lora = LoraConfig(task_type="CAUSAL_LM", **CONFIG)
        forms = {name: tokens_of(make_trainer(union(), rows, work, peft_config=copy.deepcopy(lora))) for name, rows in FORMS.items()}
        cut = tokens_of(make_trainer(union(), TEXTS, work, peft_config=copy.deepcopy(lora), max_length=MAX_LENGTH))

        # One loss with its gradients: the policy has B, and the reference is the base.
        trainer = make_trainer(union(), TEXTS, work, peft_config=copy.deepcopy(lora))
        trainer.model.load_state_dict(adapt(union(), SEED, 0.3, **CONFIG).state_dict(), strict=False)
        save_adapter(trainer.model, out / "adapter-init")
        batch = batch_of(trainer)
        reference = [values.tolist() for values in trainer.compute_ref_log_probs(trainer.model, batch)]
        trainer.model.zero_grad(set_to_none=True)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        save_tensors(out / "gradients.safetensors", {k: p.grad for k, p in trainable(trainer.model).items()})
        metrics = {k: v[-1] for k, v in trainer._metrics["train"].items() if k.startswith(("rewards/", "logps/"))}
        # cDPO, from the rewards: TRL has label smoothing only in other losses.
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        with torch.no_grad():
            logps = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels,
                                  use_cache=False, fused_lm_head=True).log_probs.sum(1)
        policy = [values.tolist() for values in logps.chunk(2)]
        margin = BETA * ((logps.chunk(2)[0] - torch.tensor(reference[0])) - (logps.chunk(2)[1] - torch.tensor(reference[1])))
        smoothed = (-(1 - SMOOTHING) * F.logsigmoid(margin) - SMOOTHING * F.logsigmoid(-margin)).mean().item()

        new = make_trainer(union(), TEXTS, work, peft_config=copy.deepcopy(lora))
        new.model.load_state_dict(adapt(union(), SEED, 0, **CONFIG).state_dict(), strict=False)
        save_adapter(new.model, out / "adapter-zero")
        started = steps_of(new)
        continued = steps_of(make_trainer(adapt(union(), SEED, 0.3, **CONFIG).train(), TEXTS, work))
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft", "trl"), "seed": SEED, "adamw": ADAMW, "beta": BETA, "labelSmoothing": SMOOTHING,
        "maxLength": MAX_LENGTH, "rows": FORMS, "tokens": forms, "cut": cut, "reference": reference, "policy": policy, "loss": loss.item(), "metrics": metrics,
        "smoothed": smoothed, "started": started, "continued": continued})
    packed.pack(out, "dpo")
    print(loss.item(), smoothed, metrics, [step["loss"] for step in started], [step["loss"] for step in continued], sep="\n")


if __name__ == "__main__":
    main()
