// Writes README.md of a handed-off run: the commands, and what differs.

import type { HandedRun } from './settings-file.js'

/** The versions with which the golden files were made. */
const PINNED = ['trl==1.16.0', 'peft==0.21.2', 'transformers==5.24.0', 'accelerate==1.15.0', 'datasets==5.2.0']

export function readmeOf(run: HandedRun, file: string, command: string, differences: readonly string[]): string {
  const { base, totalSteps, isReadable, hasTemplate, hasEvaluation } = run
  const code = (language: string, ...lines: string[]) => `\`\`\`${language}\n${lines.join('\n')}\n\`\`\`\n`
  const about = /^[./\\]/.test(base)
    ? '\nThe base is a folder: copy it to where you train, and say where it is with `--model_name_or_path`. It needs weights that transformers reads, such as model.safetensors.\n'
    : /onnx/i.test(base)
      ? '\nThe name of the base tells of ONNX files. transformers needs the repository with the original weights: `--model_name_or_path`.\n'
      : ''
  return `# A run of lowrank, to go on with TRL

${totalSteps} steps on the base \`${base}\`.

| file | what it is |
| --- | --- |
| \`${file}\` | all settings, written out |
| \`data/train.jsonl\`${hasEvaluation ? ', `data/eval.jsonl`' : ''} | ${isReadable ? 'the records' : 'the tokens and labels of the records, as lowrank made them'}, in the order of lowrank's first pass |
| \`adapter/\` | the start values of the run |
${hasTemplate ? '| `chat_template.jinja` | the chat template, with marks around what the assistant writes |\n' : ''}${about}
## Train

${code('sh', `pip install ${PINNED.join(' ')}`, `trl ${command} --config ${file}`)}
On a CPU add \`--bf16 false\`. For four GPUs add \`--num_processes 4\`, and divide \`gradient_accumulation_steps\`, or else \`per_device_train_batch_size\`, by four, so that a step has the same records.

The command starts a new adapter of the same form. A script of your own can start from the values of this run:

${code('py', "model = PeftModel.from_pretrained(model, 'adapter', is_trainable=True)")}
## Back to lowrank

The folder \`out\` is an adapter of PEFT. lowrank runs it, merges it, and trains it further:

${code('sh', 'lowrank generate --model MODEL --adapter out --prompt "The"', 'lowrank train --model MODEL --data DATA --adapter out --out next')}
\`lowrank train --resume\` does not go on with it: the optimizer's state is TRL's.

## What differs

${differences.map((line) => `- ${line}\n`).join('')}`
}
