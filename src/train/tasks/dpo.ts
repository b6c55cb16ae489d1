// Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): the model learns to make the better of two
// answers to a prompt more probable than before training, and the worse less. The loss is −ln σ(β·margin), averaged
// over the pairs.

import { counted, DataError } from '../../core/base/errors.js'
import { commonLength } from '../../core/base/group.js'
import { isObject, objectOf, pickFields } from '../../core/base/options.js'
import { type Model, requireTokenizer } from '../../model/model-folder.js'
import { CHAT_FIELDS, type Chat, type MessageOfParts, parseChat } from '../../model/text/chat.js'
import {
  checkFields,
  countTargets,
  type Example,
  fieldsOf,
  IGNORED,
  KNOWN_FIELDS,
  type ParsedRecord,
} from '../../model/text/records.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { causalLm } from './causal-lm.js'
import { DPO_OPTIONS } from './gen/options.js'
import { meansOf } from './metrics.js'
import type { EncodeContext, Encoded, OpenTask, Task } from './task.js'
import { columnFeed, SIDES, type Two, TwoAnswers } from './two-answers.js'

/** A tokenized row: the prompt with each answer. The labels are the answer's tokens. */
export interface AnswerExample {
  readonly chosen: Example
  readonly rejected: Example
  readonly before?: Two
}

export interface DpoOptions {
  /**
   * How strongly the model is held near its state before training: a reward is beta times the change of
   * ln(probability).
   * @range a finite number above 0
   * @default 0.1
   */
  readonly beta?: number | undefined
  /**
   * How likely it is that the two answers of a record are in the wrong order (cDPO, Mitchell 2023).
   * @range a number in [0, 0.5)
   * @default 0
   */
  readonly labelSmoothing?: number | undefined
}

const REFERENCE = 'loss/reference'

export const dpo: Task<AnswerPair, AnswerExample, DpoOptions> = {
  name: 'dpo',
  peftType: 'CAUSAL_LM',
  rateShare: 0.5,
  learns: 'to prefer one answer to another',
  records: [
    { prompt: 'How was the sea?', chosen: 'Calm.', rejected: 'It was a sea.' },
    { chosen: 'The sea was calm.', rejected: 'The sea was a sea.' },
  ],
  use: causalLm.use,
  options: DPO_OPTIONS,

  check: (model) => causalLm.check(model),

  reads: ({ preferred_output: isOpenAi }) => [
    ...(isOpenAi === undefined ? ['prompt', ...NAMES] : ['input', 'preferred_output', 'non_preferred_output']),
    ...KNOWN_FIELDS,
  ],

  parse: parseAnswerPair,

  encode({ chosen, rejected, where }, context) {
    const encoded = [chosen, rejected].map((record) => encodeAnswer(record, context, where))
    const sides = encoded.flatMap(({ examples }) => examples)
    const notes = [...new Set(encoded.flatMap((answer) => answer.notes ?? []))]
    if (sides.length < SIDES) return { examples: [], isTruncated: false, notes }
    const { maxLength } = context
    const [better, worse] = countedAfter(chosen, sides, context).map((side) => cutTo(side, maxLength))
    const isTruncated = sides.some(({ inputIds }) => inputIds.length > maxLength)
    const { length } = better.inputIds
    const areEqual = length === worse.inputIds.length && commonLength(better.inputIds, worse.inputIds) === length
    if (areEqual) notes.push('have two answers that are the same, and are left out')
    const isUseless = [better, worse].some(({ labels }) => countTargets(labels) === 0) || areEqual
    return { examples: isUseless ? [] : [{ chosen: better, rejected: worse }], isTruncated, notes }
  },

  tokens({ chosen, rejected }) {
    const labels = [...chosen.labels, ...rejected.labels]
    const ids = Int32Array.from([...chosen.inputIds, ...rejected.inputIds])
    const repeated = commonLength(chosen.inputIds, rejected.inputIds)
    return { ids, counts: (i) => labels[i] !== IGNORED, repeated }
  },

  open: (model, _, options = {}) => new Dpo(model, options),
}

/** Encodes a prompt with an answer of one message, uncut. Gives no example if the answer has no token. */
export function encodeAnswer(record: ParsedRecord, context: EncodeContext, where: string): Encoded<Example> {
  const encoded = causalLm.encode(record, { ...context, maxLength: Number.POSITIVE_INFINITY })
  const { examples } = encoded
  if (examples.length < 2) return encoded
  throw new DataError({
    where,
    what: 'the chat template shows the messages of an answer differently once others follow',
    expected: 'answers of one message each',
    got: `${counted(examples.length, 'message')} of the assistant`,
    hint: 'Put all messages but the last one into "prompt"',
  })
}

/** Labels the tokens after the shared prompt. A token that spans prompt and answer counts as answer, as in TRL. */
export function countedAfter(
  record: ParsedRecord,
  sides: readonly Example[],
  { model }: EncodeContext,
): readonly Example[] {
  if (record.kind !== 'pair') return sides
  const prompt = requireTokenizer(model).encode(record.prompt)
  const start = Math.min(...sides.map(({ inputIds }) => commonLength(prompt, inputIds)))
  // The first token has no target, because nothing predicts it.
  return sides.map(({ inputIds }) => ({ inputIds, labels: inputIds.slice().fill(IGNORED, 0, Math.max(1, start)) }))
}

export function cutTo({ inputIds, labels }: Example, length: number): Example {
  return { inputIds: inputIds.slice(0, length), labels: labels.slice(0, length) }
}

class Dpo extends TwoAnswers<AnswerExample> implements OpenTask<AnswerExample> {
  readonly #beta: number
  readonly #smoothing: number

  constructor(model: Model, { beta = 0.1, labelSmoothing = 0 }: DpoOptions) {
    const names = { count: 'pairs', column: REFERENCE, sides: ['loss/chosen', 'loss/rejected'] }
    super(model, names, (pairs) => ({ [REFERENCE]: columnFeed(Array(pairs).fill(0)) }))
    this.#beta = beta
    this.#smoothing = labelSmoothing
  }

  forward(graph: ObjectiveGraph): Value {
    const { g } = graph
    const [chosen, rejected] = this.losses(graph)
    const reference = graph.input(REFERENCE, DataType.FLOAT, ['pairs', 1])
    const margin = g.mul(g.sub(g.sub(rejected, chosen), reference), g.float(this.#beta))
    // cDPO: (1 − ε)·(−ln σ(m)) + ε·(−ln σ(−m)) = softplus(−m) + ε·m
    const certain = g.op('Softplus', [g.op('Neg', [margin])])
    const each = this.#smoothing === 0 ? certain : g.add(certain, g.mul(margin, g.float(this.#smoothing)))
    return g.reduceSum(each, [0, 1], 0)
  }

  cost({ chosen, rejected }: AnswerExample): number {
    return Math.max(chosen.inputIds.length, rejected.inputIds.length)
  }

  collate(examples: readonly AnswerExample[], length: number): Feeds {
    const sides = [...examples.map(({ chosen }) => chosen), ...examples.map(({ rejected }) => rejected)]
    const references = examples.map((example) => {
      const [chosen, rejected] = this.before(example)
      return chosen - rejected
    })
    return { ...this.sideFeeds(sides, length), [REFERENCE]: columnFeed(references) }
  }

  predict(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly AnswerExample[]): Two[] {
    return this.changes(outputs, examples).map(
      ([chosen, rejected]): Two => [this.#beta * chosen, this.#beta * rejected],
    )
  }

  metrics(result: { predictions: readonly unknown[] }): Record<string, number> {
    return meansOf(this.values(result))
  }

  values({ predictions }: { predictions: readonly unknown[] }): Record<string, number[]> {
    const rewards = predictions as readonly Two[]
    return {
      'rewards/accuracies': rewards.map(([chosen, rejected]) => (chosen > rejected ? 1 : 0)),
      'rewards/margins': rewards.map(([chosen, rejected]) => chosen - rejected),
      'rewards/chosen': rewards.map(([chosen]) => chosen),
      'rewards/rejected': rewards.map(([, rejected]) => rejected),
    }
  }
}

/**
 * A row of data: each answer with its prompt. As in TRL's data sets, the prompt is a separate field or both answers
 * begin with it, and prompt and answers are texts or messages of a chat. OpenAI's rows, with `input`,
 * `preferred_output` and `non_preferred_output`, are read too.
 */
export interface AnswerPair {
  readonly chosen: ParsedRecord
  readonly rejected: ParsedRecord
  readonly where: string
}

const NAMES = ['chosen', 'rejected'] as const

type Fields = Readonly<Record<string, unknown>>

/** OpenAI's rows as those of TRL. */
function fromOpenAi(row: Fields): Fields {
  const { input, preferred_output: chosen, non_preferred_output: rejected } = row
  if (!isObject(input) || chosen === undefined) return row
  return {
    ...pickFields(row, KNOWN_FIELDS),
    ...pickFields(input, CHAT_FIELDS),
    prompt: input.messages,
    chosen,
    rejected,
  }
}

function parseAnswerPair(row: unknown, where: string): AnswerPair {
  const record = fromOpenAi(objectOf(row))
  const isList = NAMES.map((name) => Array.isArray(record[name]))
  const isAnswer = NAMES.map((name, i) => isList[i] || typeof record[name] === 'string')
  const { prompt = null } = record
  const isPrompt = prompt === null || typeof prompt === 'string' || Array.isArray(prompt)
  if (isAnswer.includes(false) || isList[0] !== isList[1] || !isPrompt) {
    throw new DataError({
      where,
      what: 'not a pair of answers',
      expected: '"prompt", "chosen" and "rejected" as texts, or as lists of messages',
      got: fieldsOf(record),
      hint: "If your fields have other names, use `columns: { prompt: 'question', chosen: 'better', rejected: 'worse' }`",
    })
  }
  const empty = NAMES.find((name) => isEmpty(record[name]))
  if (empty !== undefined) throw emptyAnswer(empty, where)
  const isChat = isList[0] || Array.isArray(prompt)
  checkFields(record, isChat ? CHAT_FIELDS : [], where)
  const [chosen, rejected] = isChat ? chatsOf(record, where) : textsOf(record, where)
  return { chosen, rejected, where }
}

function isEmpty(answer: unknown): boolean {
  return Array.isArray(answer) ? answer.length === 0 : (answer as string).trim() === ''
}

function emptyAnswer(name: string, where: string): DataError {
  return new DataError({ where, what: `"${name}" has no answer`, hint: 'Leave out this record, or write the answer' })
}

function textsOf({ prompt, chosen, rejected }: Fields, where: string): ParsedRecord[] {
  const answers = [chosen, rejected] as string[]
  const start = typeof prompt === 'string' ? 0 : sharedText(answers)
  if (start === 0 && typeof prompt !== 'string') throw noPrompt('texts', where)
  return answers.map((answer) => {
    const given = typeof prompt === 'string' ? prompt : answer.slice(0, start)
    return { where, kind: 'pair', prompt: given, completion: answer.slice(start) }
  })
}

/**
 * Counts the characters that both texts begin with. A space at the end belongs to the answers, and if the texts are
 * equal, so does the last letter, as in TRL.
 */
function sharedText([a, b]: readonly string[]): number {
  const length = Math.min(commonLength(a, b), a.length - 1, b.length - 1)
  if (a[length] !== b[length] && a[length - 1] === ' ') return length - 1
  const isHalf = /[\uDC00-\uDFFF]/.test(a[length]) && /[\uD800-\uDBFF]/.test(a[length - 1] ?? '')
  return isHalf ? length - 1 : length
}

function chatsOf(record: Fields, where: string): ParsedRecord[] {
  const { prompt } = record
  const more = pickFields(record, CHAT_FIELDS)
  const read = (name: string) => {
    const turns = Array.isArray(prompt) ? { prompt, completion: record[name] } : { messages: record[name] }
    return parseChat({ ...turns, ...more }, `${where}, ${name}`)
  }
  const chats = NAMES.map(read)
  const [a, b] = chats.map(({ messages }) => messages.map((message) => JSON.stringify(message)))
  const learnFrom = Array.isArray(prompt)
    ? chats[0].learnFrom
    : Math.min(commonLength(a, b), a.length - 1, b.length - 1)
  if (learnFrom === 0) throw noPrompt('messages', where)
  return chats.map((chat, i) => {
    if (!chat.messages.slice(learnFrom).some(isSaid)) throw emptyAnswer(NAMES[i], where)
    return { where, kind: 'chat', chat: { ...chat, learnFrom } satisfies Chat }
  })
}

function isSaid({ role, content = '', tool_calls = [] }: MessageOfParts): boolean {
  return role === 'assistant' && (`${content}`.trim() !== '' || tool_calls.length > 0)
}

function noPrompt(kind: 'texts' | 'messages', where: string): DataError {
  return new DataError({
    where,
    what: '"chosen" and "rejected" do not begin with the same prompt',
    expected:
      kind === 'texts' ? 'the same beginning, or a field "prompt"' : 'the same first messages, or a field "prompt"',
  })
}
