// The rows of a handed-off run, task by task: tokens where those of TRL could differ, else the records themselves.

import { UnsupportedError } from '../base/errors.js'
import type { AnswerPair } from '../tasks/dpo.js'
import type { RelatedTexts } from '../tasks/embedding.js'
import type { JudgedRow } from '../tasks/kto.js'
import type { OpenTask } from '../tasks/task.js'
import type { TaskName } from '../tasks/tasks.js'
import type { LabeledExample } from '../tasks/text-classification.js'
import type { TaggedExample } from '../tasks/token-classification.js'
import { type Chat, chatOf } from '../text/chat.js'
import { type Example, IGNORED, type ParsedRecord } from '../text/records.js'

type Row = Readonly<Record<string, unknown>>

export interface HandedTask {
  readonly command?: 'sft' | 'dpo' | 'kto'
  /** Settings of the task that the script can follow. */
  readonly options: readonly string[]
  /** True where the loss counts what an assistant writes, so that the template has to mark it. */
  readonly marksAnswers?: boolean
  /** The tokens of an example; undefined for tasks whose records go as they are. */
  row?(example: unknown, open: OpenTask): Row
  record?(parsed: unknown, hasTemplate: boolean): Row
}

const HANDED: { readonly [Name in TaskName]?: HandedTask } = {
  'causal-lm': {
    command: 'sft',
    options: [],
    marksAnswers: true,
    row(example) {
      const { inputIds, labels } = example as Example
      return { input_ids: [...inputIds], labels: [...labels] }
    },
    record(parsed, hasTemplate) {
      const record = parsed as ParsedRecord
      if (record.kind === 'text') return { text: record.text }
      if (record.kind === 'pair') return { prompt: record.prompt, completion: record.completion }
      if (record.kind === 'chat') return { messages: record.chat.messages, ...more(record.chat) }
      const { question, answer, system } = record
      if (hasTemplate) return { messages: chatOf(question, answer, system).messages }
      return { prompt: `${system === undefined ? '' : `${system}\n\n`}${question}\n`, completion: answer }
    },
  },
  dpo: {
    command: 'dpo',
    options: ['beta', 'labelSmoothing'],
    record(parsed) {
      const { chosen, rejected } = parsed as AnswerPair
      const [own, other] = [turnsOf(chosen), turnsOf(rejected)]
      return { prompt: own.prompt, chosen: own.answer, rejected: other.answer, ...own.more }
    },
  },
  kto: {
    command: 'kto',
    options: ['beta', 'desirableWeight', 'undesirableWeight'],
    record(parsed) {
      const { record, isWanted } = parsed as JudgedRow
      const { prompt, answer, more } = turnsOf(record)
      return { prompt, completion: answer, label: isWanted, ...more }
    },
  },
  embedding: {
    options: ['loss', 'temperature', 'margin'],
    record(parsed) {
      const { texts, score } = parsed as RelatedTexts
      const [anchor, positive, negative] = texts
      return { anchor, positive, ...(negative !== undefined && { negative }), ...(score !== undefined && { score }) }
    },
  },
  'text-classification': {
    options: ['problemType'],
    row(example, { labels = [], problemType }) {
      const { inputIds, tokenTypeIds, label } = example as LabeledExample
      const own = [label].flat().map(String)
      const labeled =
        problemType === 'regression'
          ? Number(label)
          : problemType === 'single_label_classification'
            ? labels.indexOf(own[0])
            : labels.map((name) => (own.includes(name) ? 1.5 : 0.5) - 0.5)
      return { ...tokensOf(inputIds, tokenTypeIds), labels: labeled }
    },
  },
  'token-classification': {
    options: ['tagNames'],
    row(example, { labels = [] }) {
      const { inputIds, tokenTypeIds, firsts, tags } = example as TaggedExample
      const own = Array<number>(inputIds.length).fill(IGNORED)
      tags.forEach((tag, word) => {
        const index = labels.indexOf(String(tag))
        own[firsts[word]] = index >= 0 ? index : Number(tag)
      })
      return { ...tokensOf(inputIds, tokenTypeIds), labels: own }
    },
  },
}

export function handedTask(name: TaskName, taskOptions: Readonly<Record<string, unknown>> = {}): HandedTask {
  const handed = HANDED[name]
  const where = `task ${name}`
  if (handed === undefined) {
    const expected = Object.keys(HANDED).join(', ')
    throw new UnsupportedError({ where, what: 'TRL has no trainer for it', expected, hint: 'Train it with lowrank' })
  }
  const other = Object.keys(taskOptions).find((option) => !handed.options.includes(option))
  if (other === undefined) return handed
  const expected = handed.options.join(', ') || 'no settings of the task'
  throw new UnsupportedError({ where: `taskOptions.${other}`, what: 'cannot be handed off', expected })
}

function tokensOf(inputIds: Int32Array, tokenTypeIds: Int32Array): Row {
  return { input_ids: [...inputIds], ...(tokenTypeIds.includes(1) && { token_type_ids: [...tokenTypeIds] }) }
}

function turnsOf(record: ParsedRecord): { prompt: unknown; answer: unknown; more: Row } {
  if (record.kind === 'pair') return { prompt: record.prompt, answer: record.completion, more: {} }
  const { chat } = record as { chat: Chat }
  const { messages, learnFrom } = chat
  return { prompt: messages.slice(0, learnFrom), answer: messages.slice(learnFrom), more: more(chat) }
}

function more({ tools, args }: Chat): Row {
  return {
    ...(tools !== undefined && { tools: JSON.stringify(tools) }),
    ...(args !== undefined && { chat_template_kwargs: args }),
  }
}
