// Writes a training run as a folder from which TRL continues it.

import { stringify } from 'yaml'
import {
  type Directory,
  MemoryDirectory,
  readJson,
  requireEmpty,
  writeFile,
  writeThrough,
  writeTogether,
} from '../../core/base/bytes.js'
import { ConfigError, UnsupportedError } from '../../core/base/errors.js'
import { saveAdapter } from '../../lora/peft/adapter-folder.js'
import { type Chat, chatOf, withArgumentObjects } from '../../model/text/chat.js'
import type { Example, ParsedRecord } from '../../model/text/records.js'
import { baseNameOf } from '../about-run.js'
import type { TrainInput } from '../options.js'
import { EpochPlan, type PlanOptions, stepsPerEpoch } from '../rows/batches.js'
import type { RunContext } from '../run.js'
import { startRun } from '../start-run.js'
import type { AnswerPair } from '../tasks/dpo.js'
import type { JudgedRow } from '../tasks/kto.js'
import type { Examples, TaskName } from '../tasks/task.js'
import { loadTask } from '../tasks/tasks.js'
import { readmeOf } from './readme.js'
import { type HandedRun, trlSettings, withoutCounterpart } from './settings-file.js'

export interface HandoffSettings {
  readonly out: Directory
  /** The base's name for transformers; undefined to take the name that the adapter records. */
  readonly base: string | undefined
  readonly rows: 'tokens' | 'records'
}

/** Result of `handoff`. */
export interface HandoffReport {
  /** The folder that was written. */
  out: string
  /** The settings file for `trl`. */
  settings: string
  /** The number of rows to train on. */
  rows: number
  /** The number of rows for evaluation. */
  evalRows: number
  /** The number of training steps. */
  steps: number
  /** The differences of the run in TRL, each as a sentence. */
  differences: string[]
}

export async function handOff(
  options: TrainInput,
  context: RunContext,
  { out, base, rows }: HandoffSettings,
): Promise<HandoffReport> {
  await requireEmpty(out)
  const parts = await recordParts(options, context, rows)
  const { command, adapter, template, train, evaluation, ...handed } = parts
  const folder = new MemoryDirectory()
  await saveAdapter(adapter, folder)
  const run: HandedRun = {
    ...handed,
    config: adapter.config,
    peft: (await readJson(folder, 'adapter_config.json')) as Record<string, unknown>,
    base: base ?? baseNameOf(options.model).baseModel,
    hasEvaluation: evaluation !== undefined,
    hasTemplate: template !== undefined,
  }
  const file = `${command}.yaml`
  const left = withoutCounterpart(run)
  if (options.adapter !== undefined) left.push('the values of the adapter that it goes on with')
  if (run.hasTemplate && command !== 'sft' && options.chatTemplate !== undefined) left.push('the chat template')
  if (left.length > 0) {
    throw new UnsupportedError({
      where: 'run',
      what: `trl ${command} has nothing for ${left.join(', ')}`,
      hint: 'Leave it out, or train it with lowrank',
    })
  }
  const differences = differencesOf(run, options)
  await writeTogether(
    out,
    async (target) => {
      // Python reads YAML 1.1, in which `no` is a boolean and 1e-8 is a text.
      const text = stringify(trlSettings(run), { version: '1.1' }).replace(/^(\w+: \d+)(e-\d+)$/gm, '$1.0$2')
      await writeFile(target, file, text)
      await writeThrough(target, 'data/train.jsonl', async (sink) => {
        for (const line of train()) await sink.write(line)
      })
      if (evaluation !== undefined) {
        await writeThrough(target, 'data/eval.jsonl', async (sink) => {
          for (const line of evaluation()) await sink.write(line)
        })
      }
      if (template !== undefined) await writeFile(target, 'chat_template.jinja', template)
      for (const [name, bytes] of folder.files) await writeFile(target, `adapter/${name}`, bytes)
      await writeFile(target, 'README.md', readmeOf(run, file, command, differences))
    },
    true,
  )
  const { totalSteps: steps, rows: count, evalRows } = parts
  return { out: out.name, settings: file, rows: count, evalRows, steps, differences }
}

async function recordParts(options: TrainInput, context: RunContext, rows: HandoffSettings['rows']) {
  const { writesTexts = false } = options.task === undefined ? {} : await loadTask(options.task)
  if (writesTexts) throw cannotBeHandedOff(options.task!)
  const parsed: [unknown[], unknown[]] = [[], []]
  let cutChats = 0
  const onRow: RunContext['onRow'] = (row, { examples, isTruncated }, isEvaluation) => {
    for (const _ of examples) parsed[isEvaluation ? 1 : 0].push(row)
    if (isTruncated && examples.length > 0 && (row as Partial<ParsedRecord>).kind === 'chat') cutChats++
  }
  const plain = { ...options, packing: false, out: undefined }
  const run = await startRun(plain, { ...context, onRow, isElsewhere: true })
  const { examples, costs, evalExamples, adapter, records, open } = run
  const task = run.task.name as TaskName
  const handed = HANDED[task]
  if (handed === undefined) throw cannotBeHandedOff(task)
  if (rows === 'records' && cutChats > 0) {
    throw new ConfigError({
      where: 'rows',
      what: `chats longer than maxLength: ${cutChats}. Here they lose early turns, and TRL would cut their ends`,
      hint: 'Use rows: tokens, or a greater maxLength',
    })
  }
  const settings = { ...run.settings, packing: options.packing ?? false }
  const isReadable = rows === 'records' || handed.row === undefined
  const template =
    records.chatTemplate && (handed.marksAnswers ? markedTemplate(records.chatTemplate) : records.chatTemplate)
  // Only the order of the records is needed, so batches may be of any length.
  const plan = { batchSize: settings.batchSize, accumulation: settings.gradientAccumulation, limit: 0 }
  const stepsOfPass = stepsPerEpoch(examples.length, plan)
  const totalSteps = settings.maxSteps ?? Math.ceil(settings.epochs * stepsOfPass)
  const order = orderOf(adapter.config.seed, costs, { ...plan, inOrder: open.needsNeighbors ?? false })
  const form = { handed, isReadable, hasTemplate: template !== undefined }
  return {
    ...{ command: handed.command, task, taskOptions: options.taskOptions ?? {} },
    ...{ settings, adapter, template, isReadable, maxLength: records.maxLength, totalSteps },
    isInOrder: totalSteps <= stepsOfPass || open.needsNeighbors === true,
    train: () => linesOf({ examples, parsed: parsed[0] }, order, form),
    evaluation:
      evalExamples &&
      (() => linesOf({ examples: evalExamples, parsed: parsed[1] }, [...Array(evalExamples.length).keys()], form)),
    ...{ rows: examples.length, evalRows: evalExamples?.length ?? 0 },
  }
}

/** Returns the order of the first pass. A step with fewer records goes last: TRL just counts rows into batches. */
function orderOf(seed: number, costs: ArrayLike<number>, plan: PlanOptions): number[] {
  const steps = Array.from(new EpochPlan(costs, seed, 0, plan), (step) => step.flatMap(({ examples }) => examples))
  const size = plan.batchSize * plan.accumulation
  return [...steps.filter(({ length }) => length === size), ...steps.filter(({ length }) => length < size)].flat()
}

function* linesOf(
  { examples, parsed }: { readonly examples: Examples<unknown>; readonly parsed: readonly unknown[] },
  indices: readonly number[],
  { handed, isReadable, hasTemplate }: { handed: HandedTask } & Pick<HandedRun, 'isReadable' | 'hasTemplate'>,
): Generator<Uint8Array> {
  const encoder = new TextEncoder()
  const write = isReadable ? handed.record : undefined
  const seen = new Set<unknown>()
  for (const index of indices) {
    const record = parsed[index]
    // A chat with several answers gives several examples, but it is a single record.
    if (write !== undefined && seen.has(record)) continue
    seen.add(record)
    const row = write === undefined ? handed.row!(examples.at(index)) : write(record, hasTemplate)
    yield encoder.encode(`${JSON.stringify(row)}\n`)
  }
}

function differencesOf({ task, settings, config, isInOrder }: HandedRun, options: TrainInput): string[] {
  const quantized = /_(q\w+|bnb4|u?int8|quantized)(?:f16)?\.onnx$/.exec(options.model.onnxPath)
  return [
    ...(quantized
      ? [
          'The run trained on a quantized graph; here the base has its own weights. For 4 bits, set load_in_4bit: bitsandbytes rounds in another way.',
        ]
      : []),
    'TRL starts a new adapter: adapter/ has the start values of this run.',
    'Dropout of the base itself, such as GPT-2 has, is on in TRL.',
    'The settings say bf16: true, for the speed of GPUs. With --bf16 false the numbers are those of lowrank.',
    ...(config.dropout > 0 ? ['Dropout draws other random numbers.'] : []),
    ...(settings.warmupRatio === undefined && settings.warmupSteps === undefined
      ? ['The warm-up begins at the rate 0 there, so the first step learns nothing; here it begins above 0.']
      : []),
    ...(settings.packing
      ? ['TRL packs in another way, and keeps records apart only with FlashAttention or a kernel like it.']
      : []),
    ...(isInOrder ? [] : ['Passes over the data are shuffled by other random numbers.']),
    ...(task === 'kto'
      ? [
          'The KL term pairs each prompt with the answer of the row before it in the batch. Batches of another size have other pairs, and several GPUs take the mean of their KL terms: divide gradient_accumulation_steps only, and the loss still differs a little.',
        ]
      : []),
  ]
}

const MARKS = /\{%-?\s*generation\b/

const WHOLE = 'lowrank_whole'

/**
 * Marks the assistant's text with transformers' {% generation %}. This works for any template from outside: an answer
 * is the text that it adds to its prompt. The result is the same text as before, provided that the text of the first
 * messages is the beginning of the text of all messages.
 */
function markedTemplate(template: string): string {
  if (MARKS.test(template)) return template
  // The empty prints at both ends keep Jinja from trimming the text next to the tags. It drops a final line break
  // anyway.
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

type Row = Readonly<Record<string, unknown>>

interface HandedTask {
  readonly command: 'sft' | 'dpo' | 'kto'
  /** True if the loss counts only the assistant's text, so that the template must mark it. */
  readonly marksAnswers?: boolean
  /** Writes an example as tokens; undefined for tasks whose records are handed over as they are. */
  row?(example: unknown): Row
  record(parsed: unknown, hasTemplate: boolean): Row
}

const HANDED: { readonly [Name in TaskName]?: HandedTask } = {
  'causal-lm': {
    command: 'sft',
    marksAnswers: true,
    row(example) {
      const { inputIds, labels } = example as Example
      return { input_ids: [...inputIds], labels: [...labels] }
    },
    record(parsed, hasTemplate) {
      const record = parsed as ParsedRecord
      if (record.kind === 'text') return { text: record.text }
      if (record.kind === 'pair') return { prompt: record.prompt, completion: record.completion }
      if (record.kind === 'chat')
        return { messages: record.chat.messages.map(withArgumentObjects), ...more(record.chat) }
      const { question, answer, system } = record
      if (hasTemplate) return { messages: chatOf(question, answer, system).messages }
      return { prompt: `${system === undefined ? '' : `${system}\n\n`}${question}\n`, completion: answer }
    },
  },
  dpo: {
    command: 'dpo',
    record(parsed) {
      const { chosen, rejected } = parsed as AnswerPair
      const [good, bad] = [turnsOf(chosen), turnsOf(rejected)]
      return { prompt: good.prompt, chosen: good.answer, rejected: bad.answer, ...good.more }
    },
  },
  kto: {
    command: 'kto',
    record(parsed) {
      const { record, isWanted } = parsed as JudgedRow
      const { prompt, answer, more } = turnsOf(record)
      return { prompt, completion: answer, label: isWanted, ...more }
    },
  },
}

function cannotBeHandedOff(task: string): UnsupportedError {
  const expected = Object.keys(HANDED).join(', ')
  return new UnsupportedError({
    where: `task ${task}`,
    what: 'it cannot be handed off',
    expected,
    hint: 'Train it with lowrank',
  })
}

function turnsOf(record: ParsedRecord): { prompt: unknown; answer: unknown; more: Row } {
  if (record.kind === 'pair') return { prompt: record.prompt, answer: record.completion, more: {} }
  const { chat } = record as { chat: Chat }
  const { messages, learnFrom } = chat
  const read = messages.map(withArgumentObjects)
  return { prompt: read.slice(0, learnFrom), answer: read.slice(learnFrom), more: more(chat) }
}

function more({ tools, args }: Chat): Row {
  return {
    ...(tools !== undefined && { tools: JSON.stringify(tools) }),
    ...(args !== undefined && { chat_template_kwargs: args }),
  }
}
