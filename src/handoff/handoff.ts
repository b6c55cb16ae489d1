// A run of lowrank as a folder that TRL goes on with.

import { stringify } from 'yaml'
import {
  type Directory,
  MemoryDirectory,
  readAll,
  readJson,
  requireEmpty,
  withSource,
  writeFile,
  writeThrough,
  writeTogether,
} from '../base/bytes.js'
import { saveAdapter } from '../peft/adapter-folder.js'
import type { Examples, OpenTask } from '../tasks/task.js'
import type { TaskName } from '../tasks/tasks.js'
import { baseNameOf } from '../train/about-run.js'
import type { TrainingOptions } from '../train/options.js'
import { EpochPlan, stepsPerEpoch } from '../train/rows/batches.js'
import { prepare, type RunContext } from '../train/train.js'
import { type HandedTask, handedTask } from './rows.js'
import { readmeOf, trainScript } from './script.js'
import { type HandedRun, modelSettings, scriptOnly, trainingArguments, trlSettings } from './settings-file.js'

export interface HandoffSettings {
  readonly out: Directory
  /** The base as transformers opens it; undefined for the name that the adapter gives it. */
  readonly base: string | undefined
  readonly rows: 'tokens' | 'records'
  readonly unfinished: { readonly directory: Directory; readonly steps: number } | undefined
}

/** Result of `handoff`. */
export interface HandoffReport {
  /** The folder that was written. */
  out: string
  /** The settings file for `trl` and for train.py. */
  settings: string
  /** Rows to train on. */
  rows: number
  /** Rows for evaluation. */
  evalRows: number
  /** Steps that are left. */
  steps: number
  /** Parts of the run that only train.py can do, and not `trl` with the settings file. */
  scriptOnly: string[]
  /** Parts of the run that are not the same there, each as a sentence. */
  differences: string[]
}

const ADAPTER_FILES = ['adapter_config.json', 'adapter_model.safetensors']

interface Rows {
  readonly examples: Examples<unknown>
  readonly parsed: readonly unknown[]
}

export async function handOff(
  options: TrainingOptions,
  context: RunContext,
  { out, base, rows, unfinished }: HandoffSettings,
): Promise<HandoffReport> {
  await requireEmpty(out)
  const parsed: [unknown[], unknown[]] = [[], []]
  const onRow = (row: unknown, examples: number, isEvaluation: boolean) => {
    for (let i = 0; i < examples; i++) parsed[isEvaluation ? 1 : 0].push(row)
  }
  const plain = { ...options, packing: false, out: undefined, tensorboard: undefined }
  const { input, encoded } = await prepare(plain, { ...context, onRow })
  const task = input.task as TaskName
  const handed = handedTask(task, options.taskOptions)
  const settings = { ...input.settings, packing: options.packing ?? false }
  const { examples, evalExamples, adapter } = input
  const isReadable = rows === 'records' || handed.row === undefined
  const template =
    encoded.chatTemplate && (handed.marksAnswers ? markedTemplate(encoded.chatTemplate) : encoded.chatTemplate)

  const folder = new MemoryDirectory()
  if (unfinished === undefined) await saveAdapter(adapter, folder)
  else {
    for (const name of ADAPTER_FILES) folder.files.set(name, await withSource(unfinished.directory, name, readAll))
  }
  const peft = (await readJson(folder, 'adapter_config.json')) as Record<string, unknown>
  const plan = { batchSize: settings.batchSize, accumulation: settings.gradientAccumulation }
  const stepsOfPass = stepsPerEpoch(examples.length, plan)
  const totalSteps = settings.maxSteps ?? settings.epochs * stepsOfPass
  const stepsDone = unfinished?.steps ?? 0
  const run: HandedRun = {
    task,
    taskOptions: options.taskOptions ?? {},
    settings,
    config: adapter.config,
    peft,
    base: base ?? baseNameOf(options.model).baseModel,
    stepsDone,
    totalSteps,
    isInOrder: totalSteps <= stepsOfPass || input.open.needsNeighbors === true,
    maxLength: encoded.maxLength,
    hasEvaluation: evalExamples !== undefined,
    hasTemplate: template !== undefined,
    isReadable,
  }
  const file = `${handed.command ?? 'args'}.yaml`
  const yaml = handed.command === undefined ? { ...trainingArguments(run), ...modelSettings(run) } : trlSettings(run)
  const only = scriptOnly(run, handed.command)
  const differences = differencesOf(run, options)
  const order = orderOf(
    run,
    Array.from(examples, (example) => input.open.cost(example)),
    { limit: options.model.contextLength, inOrder: input.open.needsNeighbors ?? false },
  )
  const lines = (own: Rows, indices: readonly number[]) => linesOf(own, indices, { handed, open: input.open, run })

  await writeTogether(out, async (target) => {
    // Python reads YAML 1.1: `no` is a truth value there, and 1e-8 a text.
    const text = stringify(yaml, { version: '1.1' }).replace(/^(\w+: \d+)(e-\d+)$/gm, '$1.0$2')
    await writeFile(target, file, text)
    await writeThrough(target, 'data/train.jsonl', async (sink) => {
      for (const line of lines({ examples, parsed: parsed[0] }, order)) await sink.write(line)
    })
    if (evalExamples !== undefined) {
      const all = Array.from({ length: evalExamples.length }, (_, index) => index)
      await writeThrough(target, 'data/eval.jsonl', async (sink) => {
        for (const line of lines({ examples: evalExamples, parsed: parsed[1] }, all)) await sink.write(line)
      })
    }
    if (template !== undefined) await writeFile(target, 'chat_template.jinja', template)
    for (const [name, bytes] of folder.files) await writeFile(target, `adapter/${name}`, bytes)
    await writeFile(target, 'train.py', trainScript(scriptValues(run, input.open, file)))
    await writeFile(target, 'README.md', readmeOf(run, { file, command: handed.command, only, differences }))
  })
  return {
    out: out.name,
    settings: file,
    rows: examples.length,
    evalRows: evalExamples?.length ?? 0,
    steps: totalSteps - stepsDone,
    scriptOnly: only,
    differences,
  }
}

/** From the next step on. A step that is smaller than others comes last: elsewhere rows are counted off. */
function orderOf(
  { settings, config, stepsDone }: HandedRun,
  costs: ArrayLike<number>,
  { limit = Number.POSITIVE_INFINITY, inOrder }: { limit: number | undefined; inOrder: boolean },
): number[] {
  const plan = {
    batchSize: settings.batchSize,
    accumulation: settings.gradientAccumulation,
    limit,
    inOrder,
  }
  const steps = Array.from(new EpochPlan(costs, config.seed, 0, plan), (step) =>
    step.flatMap(({ examples }) => examples),
  )
  const size = plan.batchSize * plan.accumulation
  const done = steps.length === 0 ? 0 : stepsDone % steps.length
  const turned = [...steps.slice(done), ...steps.slice(0, done)]
  return [...turned.filter(({ length }) => length === size), ...turned.filter(({ length }) => length < size)].flat()
}

function* linesOf(
  { examples, parsed }: Rows,
  indices: readonly number[],
  { handed, open, run: { isReadable, hasTemplate } }: { handed: HandedTask; open: OpenTask; run: HandedRun },
): Generator<Uint8Array> {
  const encoder = new TextEncoder()
  const write = isReadable ? handed.record : undefined
  const seen = new Set<unknown>()
  for (const index of indices) {
    const record = parsed[index]
    // A chat that gives an example for each answer is one record.
    if (write !== undefined && seen.has(record)) continue
    seen.add(record)
    const row = write === undefined ? handed.row!(examples.at(index), open) : write(record, hasTemplate)
    yield encoder.encode(`${JSON.stringify(row)}\n`)
  }
}

function scriptValues(
  run: HandedRun,
  { labels, problemType }: { labels?: readonly string[]; problemType?: string },
  file: string,
) {
  const { task, taskOptions, settings, stepsDone, maxLength } = run
  return {
    task,
    task_options: taskOptions,
    settings: file,
    labels: labels ?? null,
    problem_type: problemType ?? null,
    lora_plus_ratio: settings.loraPlusRatio ?? 1,
    lora_fa: settings.loraFa,
    schedule: settings.schedule,
    warmup_ratio: settings.warmupRatio,
    steps_done: stepsDone,
    early_stopping: settings.earlyStopping ?? null,
    batch_size: settings.batchSize,
    max_length: Number.isFinite(maxLength) ? maxLength : null,
  }
}

function differencesOf(
  { task, settings, config, peft, stepsDone, isInOrder }: HandedRun,
  options: TrainingOptions,
): string[] {
  const quantized = /_(q\w+|bnb4|u?int8|quantized)(?:f16)?\.onnx$/.exec(options.model.onnxPath)
  return [
    ...(quantized
      ? [
          'The run trained on a quantized graph; here the base has its own weights. For 4 bits, set load_in_4bit: bitsandbytes rounds in another way.',
        ]
      : []),
    'The settings say bf16: true, for the speed of GPUs. With --bf16 false the numbers are those of lowrank.',
    ...(config.dropout > 0 ? ['Dropout draws other random numbers.'] : []),
    ...(settings.packing
      ? ['TRL packs in another way, and keeps records apart only with FlashAttention or a kernel like it.']
      : []),
    ...(stepsDone > 0
      ? [`The adapter of step ${stepsDone} goes along. The moments of its optimizer do not: AdamW starts anew.`]
      : []),
    ...(isInOrder ? [] : ['Passes over the data are shuffled by other random numbers.']),
    ...(stepsDone > 0 && (task === 'dpo' || task === 'kto')
      ? ['TRL compares with the adapter that goes along, and not with the model before the first step.']
      : []),
    ...(task === 'kto'
      ? [
          'The KL term pairs each prompt with the answer of the row before it in the batch. Batches of another size have other pairs, and several GPUs take the mean of their KL terms: divide gradient_accumulation_steps only, and the loss still differs a little.',
        ]
      : []),
    ...(settings.keep === 'best' && stepsDone > 0
      ? ['The adapter that goes along is that of the best evaluation.']
      : []),
    ...(peft.trainable_token_indices ? ['Rows of trained tokens go along with the adapter, as PEFT keeps them.'] : []),
  ]
}

const MARKS = /\{%-?\s*generation\b/

const WHOLE = 'lowrank_whole'

/**
 * Marks what the assistant writes, as transformers' {% generation %} does. Any template can be marked from outside: an
 * answer is what its text adds to the prompt for it. Writes the same text as before, as long as the text of the first
 * messages begins the text of all.
 */
function markedTemplate(template: string): string {
  if (MARKS.test(template)) return template
  // A print at both ends keeps Jinja from trimming the text beside the tags; the last line break it drops anyway.
  return `{% macro ${WHOLE}(messages, add_generation_prompt) %}{{ '' }}${template.replace(/\n$/, '')}{{ '' }}{% endmacro -%}
{%- set lowrank = namespace(done=0) -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' and loop.index0 > 0 -%}
{%- set before = ${WHOLE}(messages[:loop.index0], true) -%}
{%- set after = ${WHOLE}(messages[:loop.index], false) -%}
{{- before[lowrank.done:] -}}
{%- generation -%}{{- after[before | length:] -}}{%- endgeneration -%}
{%- set lowrank.done = after | length -%}
{%- endif -%}
{%- endfor -%}
{{- ${WHOLE}(messages, add_generation_prompt | default(false))[lowrank.done:] -}}
`
}
