// README.md of a handed-off run: what each file is, the commands for the places where GPUs are, and what differs.

import type { HandedRun } from './settings-file.js'

interface Told {
  readonly file: string
  readonly command: string | undefined
  /** Parts that TRL's command cannot do. */
  readonly only: readonly string[]
  readonly differences: readonly string[]
}

export function readmeOf(run: HandedRun, { file, command, only, differences }: Told): string {
  const { base, stepsDone, totalSteps, isReadable, hasTemplate } = run
  const isPath = /^[./\\]/.test(base)
  const code = (language: string, ...lines: string[]) => `\`\`\`${language}\n${lines.join('\n')}\n\`\`\`\n`
  const plain =
    command === undefined || only.length > 0
      ? `\`trl\` cannot do all of this run from its settings file: ${only.join(', ')}. train.py does.\n`
      : `Or by TRL's own command. It begins with start values of its own, and its warm-up begins one step later:\n\n${code('sh', `trl ${command} --config ${file}`)}`
  return `# A run of lowrank, to go on with TRL

${totalSteps - stepsDone} steps${stepsDone > 0 ? `, after ${stepsDone} that are made` : ''}, on the base \`${base}\`.

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

${[...differences, ...(only.length > 0 && command !== undefined ? [`\`trl ${command}\` alone leaves out: ${only.join(', ')}.`] : [])].map((one) => `- ${one}\n`).join('')}`
}
