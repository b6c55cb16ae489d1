// Writes train.py of a handed-off run, which does what TRL's settings files cannot express, and its README.md.

import { type HandedReward, leftToFillIn, packagesOf, rewardsScript } from './rewards.js'
import type { HandedRun } from './settings-file.js'

export function trainScript(run: object, rewards?: readonly HandedReward[]): string {
  const packages = rewards === undefined ? [] : packagesOf(rewards)
  const script = SCRIPT.replace('{PACKAGES}', () => packages.map((name) => `#   "${name}",\n`).join('')).replace(
    '{REWARDS}',
    () => (rewards === undefined ? '' : rewardsScript(leftToFillIn(rewards))),
  )
  return script.replace('{RUN}', () => JSON.stringify(JSON.stringify(run, null, 1)).replaceAll('\\n', '\\n"\n    "'))
}

/** The versions with which the golden files were made. */
export const PINNED = {
  trl: '1.16.0',
  peft: '0.21.2',
  transformers: '5.24.0',
  accelerate: '1.15.0',
  datasets: '5.2.0',
}

const SCRIPT = `# /// script
# requires-python = ">=3.10"
# dependencies = [
${Object.entries(PINNED)
  .map(([name, version]) => `#   "${name}==${version}",\n`)
  .join('')}{PACKAGES}# ]
# ///
"""Goes on with a run of lowrank: the same records, settings and start values.

Options of the command line replace those of the settings file: --bf16 false --output_dir elsewhere
HANDOFF_REPO=owner/name takes this folder from a data set on the Hub.
"""

import json
import math
import os
import re
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from peft import PeftModel

RUN = json.loads(
    {RUN}
)

if "HANDOFF_REPO" in os.environ:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(os.environ["HANDOFF_REPO"], repo_type="dataset"))
else:
    folder = Path(__file__).resolve().parent


class LikeLowrank:
    """The optimizer and the learning rates of lowrank, for any Trainer."""

    def create_optimizer(self, *_, **__):
        if self.optimizer is not None:
            return self.optimizer
        rate, decay = self.args.learning_rate, self.args.weight_decay
        # LoRA+: B and vectors learn faster.
        fast, slow = [], []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (fast if "lora_B" in name or parameter.ndim == 1 else slow).append(parameter)
        groups = [{"params": slow, "lr": rate}, {"params": fast, "lr": rate * RUN["lora_plus_ratio"]}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            warmup = RUN["warmup_steps"]
            if warmup is None:
                warmup = math.ceil(RUN["warmup_ratio"] * num_training_steps - 1e-9)

            def factor(step):
                if step < warmup:
                    return step / warmup
                progress = (step - warmup) / max(1, num_training_steps - warmup)
                if RUN["schedule"] == "cosine":
                    return 0.5 * (1 + math.cos(math.pi * progress))
                return 1 - progress if RUN["schedule"] == "linear" else 1.0

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler


def settings(*types):
    """The settings file, and the options of the command line above it."""
    from trl import TrlParser

    argv = sys.argv[1:]
    if "--config" not in argv:
        argv = ["--config", str(folder / RUN["settings"]), *argv]
    return TrlParser(types).parse_args_and_config(args=argv, fail_with_unknown_args=False)[: len(types)]


def rows():
    files = {"train": str(folder / "data/train.jsonl")}
    if (folder / "data/eval.jsonl").exists():
        files["test"] = str(folder / "data/eval.jsonl")
    data = load_dataset("json", data_files=files)
    return data["train"], data.get("test")


def with_adapter(model):
    # The base runs without dropout, as in lowrank.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return PeftModel.from_pretrained(model, str(folder / "adapter"), is_trainable=True)


def callbacks():
    if RUN["early_stopping"] is None:
        return []
    from transformers import EarlyStoppingCallback

    return [EarlyStoppingCallback(early_stopping_patience=RUN["early_stopping"])]


{REWARDS}def make():
    from transformers import AutoModelForCausalLM, AutoTokenizer
    import trl
    from trl import ModelConfig

    kind = {"dpo": "DPO", "kto": "KTO", "grpo": "GRPO"}.get(RUN["task"], "SFT")
    config, base = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    args, model_args = settings(config, ModelConfig)
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
    )
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    template = folder / "chat_template.jinja"
    if template.exists():
        tokenizer.chat_template = template.read_text()
        # Done here, wherever the script runs.
        args.chat_template_path = None
    trainer = type("Trainer", (LikeLowrank, base), {})
    train, test = rows()
    return trainer(
        model=with_adapter(model), args=args, train_dataset=train, eval_dataset=test, processing_class=tokenizer,
        callbacks=callbacks(), **({"reward_funcs": [reward_of(reward) for reward in RUN["rewards"]]} if "rewards" in RUN else {}),
    )


def main():
    trainer = make()
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    out = trainer.args.output_dir
    trainer.save_model(out)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    print("The adapter is in", out)


if __name__ == "__main__":
    main()
`

/** @param only the parts of the run for which TRL's command has no option, so that they need train.py */
export function readmeOf(
  run: HandedRun,
  file: string,
  command: string,
  only: readonly string[],
  differences: readonly string[],
): string {
  const { base, totalSteps, isReadable, hasTemplate } = run
  const isPath = /^[./\\]/.test(base)
  const code = (language: string, ...lines: string[]) => `\`\`\`${language}\n${lines.join('\n')}\n\`\`\`\n`
  const plain =
    only.length > 0
      ? `\`trl\` cannot do all of this run from its settings file: ${only.join(', ')}. train.py does.\n`
      : `Or with TRL's own command, which starts from other initial values:\n\n${code('sh', `trl ${command} --config ${file}`)}`
  return `# A run of lowrank, to go on with TRL

${totalSteps} steps on the base \`${base}\`.

| file | what it is |
| --- | --- |
| \`${file}\` | all settings, written out |
| \`data/train.jsonl\`${run.hasEvaluation ? ', `data/eval.jsonl`' : ''} | ${isReadable ? 'the records' : 'the tokens and labels of the records, as lowrank made them'}, in the order of lowrank's first pass |
| \`adapter/\` | the adapter that training starts from |
${hasTemplate ? '| `chat_template.jinja` | the chat template, with marks around what the assistant writes |\n' : ''}| \`train.py\` | starts the run: optimizer, learning rates and start values as in lowrank |
${isPath ? `\nThe base is a folder: copy it to where you train, and say where it is with \`--model_name_or_path\`. It needs weights that transformers reads, such as model.safetensors.\n` : /onnx/i.test(base) ? `\nThe name of the base tells of ONNX files. transformers needs the repository with the original weights: \`--model_name_or_path\`.\n` : ''}
## One GPU

${code('sh', 'uv run train.py')}
Without uv: install what the first lines of train.py list, and run \`python train.py\`. On a CPU add \`--bf16 false\`.

${plain}
## Several GPUs

Divide \`gradient_accumulation_steps\`, or else \`per_device_train_batch_size\`, by the number of GPUs, so that a step has the same records.

${code('sh', '# one machine', 'accelerate launch --num_processes 4 train.py', '# a base that is too large for one GPU', 'accelerate launch --num_processes 4 --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_state_dict_type FULL_STATE_DICT train.py', '# two machines: the same on each, with its own rank', 'accelerate launch --num_machines 2 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 29500 --num_processes 8 train.py')}
## Hugging Face Jobs

${code('sh', 'hf upload --repo-type dataset --private YOU/run .', 'hf jobs uv run --flavor a10g-small --timeout 4h --secrets HF_TOKEN --env HANDOFF_REPO=YOU/run train.py --push_to_hub true --hub_model_id YOU/adapter --hub_private_repo true')}
## SkyPilot

${code('yaml', 'resources: { accelerators: A100:1 }', 'workdir: .', 'setup: pip install uv', 'run: uv run train.py')}
${code('sh', 'sky launch task.yaml')}
## Slurm

${code('sh', '#!/bin/sh', '#SBATCH --nodes=1 --gpus-per-node=4 --time=04:00:00', 'srun accelerate launch --num_processes 4 train.py')}
## Kubeflow Trainer

${code('yaml', 'apiVersion: trainer.kubeflow.org/v1alpha1', 'kind: TrainJob', 'metadata: { name: lowrank-run }', 'spec:', '  runtimeRef: { name: torch-distributed }', '  trainer:', '    numNodes: 1', '    numProcPerNode: 4', '    image: ghcr.io/astral-sh/uv:python3.12-bookworm', '    env: [{ name: HANDOFF_REPO, value: YOU/run }]', '    command: [uv, run, "https://huggingface.co/datasets/YOU/run/raw/main/train.py"]')}
The data set is private: give the job a secret with HF_TOKEN, or take train.py from a volume.

## Back to lowrank

The folder \`out\` is an adapter of PEFT. lowrank runs it, merges it, and trains it further:

${code('sh', 'lowrank generate --model MODEL --adapter out --prompt "The"', 'lowrank train --model MODEL --data DATA --adapter out --out next')}
\`lowrank train --resume\` does not go on with it: the optimizer's state is TRL's.

## What differs

${[...differences, ...(only.length > 0 ? [`\`trl ${command}\` alone leaves out: ${only.join(', ')}.`] : [])].map((line) => `- ${line}\n`).join('')}`
}
