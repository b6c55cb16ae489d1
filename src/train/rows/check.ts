// Facts about data before a model learns from it: the task that they fit, their lengths and labels, and what is wrong.
// Texts are not kept: records are compared by hashes of 53 bits.

import { ConfigError, DataError, UnsupportedError } from '../../core/base/errors.js'
import { commonLength, firstOf } from '../../core/base/group.js'
import { isObject } from '../../core/base/options.js'
import { readRows } from '../../files/data/read-rows.js'
import { Hash } from '../../model/base-record.js'
import { type Model, requireTokenizer, type TextModel } from '../../model/model-folder.js'
import { bytesOf } from '../../onnx/format/tensors.js'
import { joinGraphs } from '../graph/joined-graph.js'
import type { TrainInput, TrainingData } from '../options.js'
import type { EncodeContext, Task, TaskName } from '../tasks/task.js'
import { taskOfRow } from '../tasks/task-of-row.js'
import { loadTask } from '../tasks/tasks.js'
import { encodeContext, encodeRow, withPictures } from './examples.js'
import {
  countOne,
  type LengthReport,
  labelsOf,
  lengthsOf,
  MAX_LABELS,
  MAX_NOTES,
  mostFrequent,
  unreadNotes,
} from './facts.js'

/** A token of an example. */
export interface PreviewToken {
  readonly id: number
  /** The token as text. If a character consists of several tokens, the last of them has the text. */
  readonly text: string
  /** True for a target: the loss counts how well it is predicted. */
  readonly counts: boolean
}

/** An example. */
export interface PreviewExample {
  /** The record that it comes from: `chats.jsonl, line 3`. */
  readonly where: string
  readonly tokens: readonly PreviewToken[]
  /** The label of the whole text, for tasks with labels: several are joined by commas. */
  readonly label?: string
}

/** Facts about some data. */
export interface DataReport {
  /** The task that was named, or else the one whose fields the first record has. */
  readonly task: string
  /** Records that can be read, without those of `evalData`. */
  readonly records: number
  /** Records with a target to learn from; without a model, chats without an answer are the ones that have none. */
  readonly learnable: number
  /** The fields of records, joined by commas, and how many have them; the most frequent first, at most 100. */
  readonly fields: Readonly<Record<string, number>>
  readonly lengths: LengthReport | null
  /** Labels and tags, and how often they occur, the most frequent first, at most 1000. Null without any. */
  readonly labels: Readonly<Record<string, number>> | null
  /** Records that an earlier one equals. */
  readonly duplicates: number
  /** Records of `evalData`. */
  readonly evalRecords: number
  /** Records of `evalData` that are in the training data too. */
  readonly evalInTraining: readonly string[]
  /** Every record that cannot be used, up to `maxInvalid`: its file and line, and the reason. */
  readonly invalid: readonly { readonly where: string; readonly message: string }[]
  /** Parts that are not learned, with the number of records: `have tools …`. Most are known only with a model. */
  readonly notes: Readonly<Record<string, number>>
  /** The first examples as tokens, as many as `preview` asks for. */
  readonly examples: readonly PreviewExample[]
}

export interface CheckDataInput
  extends Pick<
    TrainInput,
    'task' | 'data' | 'evalData' | 'columns' | 'maxLength' | 'chatTemplate' | 'chatTemplateArgs' | 'decodeImage'
  > {
  /** Without its graph, whether the model can be trained for the task is not checked. */
  readonly model?: Model | TextModel | undefined
  readonly maxInvalid?: number | undefined
}

/** Ends the reading of a file. */
const ENOUGH = new Error('enough records that cannot be used')
const UNLEARNED = 'left out, because they have no target'

/** Wrong records are in the report, wrong options are thrown. `preview`: examples that are shown as tokens. */
export async function checkRecords(given: CheckDataInput, preview = 0): Promise<DataReport> {
  const { model: asGiven } = given
  if (asGiven === undefined || !('onnx' in asGiven)) return checkOpened(given, preview)
  const opened = { ...given, model: await joinGraphs(asGiven) }
  return withPictures(opened, (pictures) => checkOpened({ ...opened, pictures }, preview))
}

type OpenedInput = CheckDataInput & Pick<EncodeContext, 'pictures'>

async function checkOpened(options: OpenedInput, preview: number): Promise<DataReport> {
  const { model, evalData } = options
  if (model === undefined && preview > 0) throw new ConfigError({ where: 'preview', what: 'needs a `model`' })
  const training = new Records(options, preview)
  await training.read(options.data, 'data')
  // Sets of JavaScript end at 16 million.
  const hashes = new Float64Array(training.hashes).sort()
  const different = hashes.reduce((sum, hash, i) => sum + Number(hash !== hashes[i - 1]), 0)
  const evaluation = new Records({ ...options, task: training.task?.name as TaskName | undefined }, 0)
  const evalInTraining: string[] = []
  evaluation.onRecord = (hash, where) => {
    const place = firstOf(hashes.length, (i) => hashes[i] >= hash)
    if (hashes[place] === hash) evalInTraining.push(where)
  }
  if (evalData !== undefined) await evaluation.read(evalData, 'evalData')
  return {
    task: (training.task ?? (await (options.task === undefined ? taskOfRow(undefined, model) : loadTask(options.task))))
      .name,
    records: training.hashes.length,
    learnable: training.hashes.length - (training.notes.get(UNLEARNED) ?? 0),
    fields: mostFrequent(training.forms),
    lengths: lengthsOf(training.lengths, model === undefined ? 'characters' : 'tokens'),
    labels: training.labels.size === 0 ? null : mostFrequent(training.labels),
    duplicates: hashes.length - different,
    evalRecords: evaluation.hashes.length,
    evalInTraining,
    invalid: [...training.invalid, ...evaluation.invalid],
    notes: Object.fromEntries(training.notes),
    examples: training.examples,
  }
}

class Records {
  task: Task | undefined
  /** The hash of each record that can be read. */
  readonly hashes: number[] = []
  readonly forms = new Map<string, number>()
  readonly labels = new Map<string, number>()
  readonly lengths = new Map<number, number>()
  readonly notes = new Map<string, number>()
  readonly invalid: { where: string; message: string }[] = []
  readonly examples: PreviewExample[] = []
  onRecord: (hash: number, where: string) => void = () => {}

  constructor(
    private readonly options: OpenedInput,
    private readonly preview: number,
  ) {}

  async read(data: TrainingData, name: string): Promise<void> {
    const { model, columns, task, maxInvalid } = this.options
    const onInvalid = (error: unknown) => {
      if (!(error instanceof DataError)) throw error
      this.invalid.push({ where: error.where ?? name, message: error.message })
      if (this.invalid.length === maxInvalid) throw ENOUGH
    }
    const context = model && (await encodeContext({ ...this.options, model }))
    try {
      for await (const { row, where } of readRows(data, { columns, name, onInvalid })) {
        if (this.task === undefined) {
          this.task = task === undefined ? await taskOfRow(row, model) : await loadTask(task)
          if (model !== undefined && 'onnx' in model) this.task.check(model)
        }
        try {
          if (context === undefined) this.task.parse(row, where)
          this.#take(row, where, context && (await this.#encode(row, this.task, context, where)))
        } catch (error) {
          onInvalid(error)
        }
      }
    } catch (error) {
      // Records after a broken quote cannot be told apart, so reading ends there.
      if (error === ENOUGH) return
      if (!(error instanceof DataError)) throw error
      this.invalid.push({ where: error.where ?? name, message: error.message })
    }
  }

  /** `length`: tokens; undefined for the characters of the row. */
  #take(row: unknown, where: string, length: number | undefined): void {
    const hash = hashOf(row)
    if (length === undefined && isUnanswered(row)) countOne(this.notes, UNLEARNED)
    this.onRecord(hash, where)
    this.hashes.push(hash)
    countOne(this.lengths, length ?? charactersOf(row))
    if (!isObject(row)) return
    countOne(this.forms, Object.keys(row).join(', '), MAX_NOTES)
    for (const label of labelsOf(row)) countOne(this.labels, label, MAX_LABELS)
    for (const note of unreadNotes(this.task!, row)) countOne(this.notes, note, MAX_NOTES)
  }

  async #encode(row: unknown, task: Task, context: EncodeContext, where: string): Promise<number> {
    const { encoded } = await encodeRow(task, row, where, context)
    const { examples, isTruncated, notes = [] } = encoded
    if (isTruncated) countOne(this.notes, `cut to ${context.maxLength} tokens`)
    if (examples.length === 0) countOne(this.notes, UNLEARNED)
    for (const note of notes) countOne(this.notes, note)
    if (task.tokens === undefined) {
      if (this.preview > 0) throw new UnsupportedError({ where: task.name, what: 'this task has no preview' })
      return examples.length
    }
    // A text for each answer of a chat begins with the turns of the text before it: these count once.
    let length = 0
    let before: Int32Array = new Int32Array()
    for (const example of examples) {
      const { ids, counts, label, repeated = 0 } = task.tokens(example)
      length += ids.length - repeated - commonLength(before, ids)
      before = ids
      if (this.examples.length === this.preview) continue
      const tokenizer = requireTokenizer(context.model)
      const texts = textsOf(ids, (some) => tokenizer.decode(some, { specialTokens: true }))
      const tokens = Array.from(ids, (id, i) => ({ id, text: texts[i], counts: counts(i) }))
      this.examples.push({ where, tokens, ...(label === undefined ? {} : { label }) })
    }
    return length
  }
}

function isUnanswered(row: unknown): boolean {
  if (!isObject(row) || !Array.isArray(row.messages)) return false
  return !row.messages.some((message) => isObject(message) && message.role === 'assistant')
}

/** A hash of all fields: 64 bits, rounded to the 53 that a number holds. */
function hashOf(row: unknown): number {
  const text = JSON.stringify(row, (_, value: unknown) => {
    if (ArrayBuffer.isView(value)) return new Hash().add(bytesOf(value)).digest()
    return typeof value === 'bigint' ? `${value}` : value
  })
  return Number(`0x${new Hash().add(new TextEncoder().encode(text)).digest()}`)
}

function charactersOf(value: unknown): number {
  if (typeof value === 'string') return value.length
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return 0
  return Object.values(value).reduce<number>((sum, inner) => sum + charactersOf(inner), 0)
}

/** Text of each token. Bytes of an unfinished character wait for the token that completes it. */
function textsOf(ids: Int32Array, decode: (ids: readonly number[]) => string): string[] {
  let open: number[] = []
  return Array.from(ids, (id) => {
    open.push(id)
    const text = decode(open)
    if (text.endsWith('\ufffd') && open.length < MAX_CHARACTER_TOKENS) return ''
    open = []
    return text
  })
}

const MAX_CHARACTER_TOKENS = 4
