// Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306): from single answers marked as wanted or
// unwanted, the model learns to make them more or less probable than before training. The loss of an answer is
// weight·(1 − σ(±β·(log ratio − KL))); the KL is estimated from answers paired with the wrong prompt of the batch.

import { DataError } from '../../core/base/errors.js'
import { objectOf, pickFields } from '../../core/base/options.js'
import { roundUp } from '../../model/inputs/token-batch.js'
import type { Model } from '../../model/model-folder.js'
import {
  countTargets,
  type Example,
  fieldsOf,
  IGNORED,
  KNOWN_FIELDS,
  type ParsedRecord,
  parseRecord,
} from '../../model/text/records.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { causalLm } from './causal-lm.js'
import { countedAfter, cutTo, type DpoOptions, encodeAnswer } from './dpo.js'
import { KTO_OPTIONS } from './gen/options.js'
import { meansOf } from './metrics.js'
import type { OpenTask, Task } from './task.js'
import { columnFeed, type Two, TwoAnswers } from './two-answers.js'

/** A row of data: an answer with its prompt, and whether it is wanted. */
export interface JudgedRow {
  readonly record: ParsedRecord
  readonly isWanted: boolean
  readonly where: string
}

/** A tokenized row. The labels are the answer's tokens. */
export interface JudgedExample {
  /** The prompt with its answer. */
  readonly text: Example
  readonly isWanted: boolean
  /** The whole answer, even if `text` is cut. The next example's prompt gets it as its mismatched answer. */
  readonly answer: Int32Array
  /** The most tokens of this prompt together with its mismatched answer. A longer answer is cut. */
  readonly limit: number
  readonly before?: Two
}

export interface KtoOptions extends Pick<DpoOptions, 'beta'> {
  /**
   * Weight of wanted answers in the loss.
   * @range a finite number above 0
   * @default 1
   */
  readonly desirableWeight?: number | undefined
  /**
   * Weight of unwanted answers in the loss.
   * @range a finite number above 0
   * @default 1
   */
  readonly undesirableWeight?: number | undefined
}

/**
 * Inputs for each example: ln(probability), before training, of the answer and of the mismatched answer; ±1; and the
 * weight.
 */
const OWN_BEFORE = 'loss/own_before'
const OTHER_BEFORE = 'loss/other_before'
const SIGN = 'loss/sign'
const WEIGHT = 'loss/weight'

interface Judgement {
  readonly reward: number
  readonly isWanted: boolean
  /** Change of ln(probability) of the mismatched answer since before training. */
  readonly mismatched: number
}

export const kto: Task<JudgedRow, JudgedExample, KtoOptions> = {
  name: 'kto',
  peftType: 'CAUSAL_LM',
  rateShare: 0.5,
  learns: 'to give answers that are wanted',
  records: [{ prompt: 'How was the sea?', completion: 'Calm.', label: true }],
  use: causalLm.use,
  options: KTO_OPTIONS,

  check: (model) => causalLm.check(model),

  reads: () => ['prompt', 'completion', 'label', ...KNOWN_FIELDS],

  parse(row, where) {
    const record = objectOf(row)
    const { label, prompt, completion } = record
    const isWanted = typeof label === 'string' ? { true: true, false: false }[label.toLowerCase()] : label
    if (typeof isWanted !== 'boolean' || prompt === undefined || completion === undefined) {
      throw new DataError({
        where,
        what: 'not an answer that is wanted or not',
        expected: '"prompt" and "completion" as texts, or as lists of messages, and "label": true or false',
        got: fieldsOf(row),
        hint: "If your fields have other names, use `columns: { prompt: 'question', completion: 'answer', label: 'good' }`",
      })
    }
    const known = pickFields(record, KNOWN_FIELDS)
    return { record: parseRecord({ prompt, completion, ...known }, where), isWanted, where }
  },

  encode({ record, isWanted, where }, context) {
    const { examples, notes } = encodeAnswer(record, context, where)
    const { maxLength } = context
    const sides = examples.length === 0 ? [] : countedAfter(record, examples, context)
    const all = sides.map((side) => {
      return { text: cutTo(side, maxLength), isWanted, answer: side.inputIds.slice(startOf(side)), limit: maxLength }
    })
    return {
      examples: all.filter(({ text }) => countTargets(text.labels) > 0),
      isTruncated: sides.some(({ inputIds }) => inputIds.length > maxLength),
      ...(notes && { notes }),
    }
  },

  tokens: ({ text: { inputIds, labels }, isWanted }) => ({
    ids: inputIds,
    counts: (i) => labels[i] !== IGNORED,
    label: String(isWanted),
  }),

  open: (model, _, options = {}) => new Kto(model, options),
}

class Kto extends TwoAnswers<JudgedExample> implements OpenTask<JudgedExample> {
  readonly needsNeighbors = true
  readonly #beta: number
  readonly #weights: Two

  constructor(model: Model, { beta = 0.1, desirableWeight = 1, undesirableWeight = 1 }: KtoOptions) {
    const names = { count: 'answers', column: SIGN, sides: ['loss/own', 'loss/other'] }
    super(model, names, (answers) => judgedFeeds(Array(answers).fill({ sign: 1, weight: 1, before: [0, 0] })))
    this.#beta = beta
    this.#weights = [desirableWeight, undesirableWeight]
  }

  forward(graph: ObjectiveGraph): Value {
    const { g } = graph
    const input = (name: string) => graph.input(name, DataType.FLOAT, ['answers', 1])
    const [matched, mismatched] = this.losses(graph)
    const drift = g.op('ReduceMean', [g.sub(g.op('Neg', [mismatched]), input(OTHER_BEFORE))], { keepdims: 1 })
    const kl = g.op('Relu', [drift])
    // As in the paper, no gradient flows through the estimate of KL.
    graph.customGradients.set(kl, { inputs: [], rule: () => [] })
    const ratio = g.sub(g.op('Neg', [matched]), input(OWN_BEFORE))
    const gain = g.mul(g.mul(g.sub(ratio, kl), input(SIGN)), g.float(this.#beta))
    return g.reduceSum(g.mul(g.op('Sigmoid', [g.op('Neg', [gain])]), input(WEIGHT)), [0, 1], 0)
  }

  cost({ text }: JudgedExample): number {
    return text.inputIds.length
  }

  collate(examples: readonly JudgedExample[], length: number): Feeds {
    const others = examples.map((example, i) => withAnswerOf(example, examples.at(i - 1)!))
    const sides = [...examples.map(({ text }) => text), ...others]
    const width = roundUp(Math.max(length, ...others.map(({ inputIds }) => inputIds.length)))
    const rowLength = Math.min(width, Math.max(length, this.model.contextLength ?? width))
    const judged = examples.map((example) => ({
      sign: example.isWanted ? 1 : -1,
      weight: this.#weights[example.isWanted ? 0 : 1],
      before: this.before(example),
    }))
    return { ...this.sideFeeds(sides, rowLength), ...judgedFeeds(judged) }
  }

  predict(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly JudgedExample[]): Judgement[] {
    return this.changes(outputs, examples).map(([matched, mismatched], i): Judgement => {
      return { reward: this.#beta * matched, isWanted: examples[i].isWanted, mismatched }
    })
  }

  metrics({ predictions }: { predictions: readonly unknown[] }): Record<string, number> {
    const all = predictions as readonly Judgement[]
    const rewards = (wanted: boolean) => all.filter(({ isWanted }) => isWanted === wanted).map(({ reward }) => reward)
    const means = meansOf({ 'rewards/chosen': rewards(true), 'rewards/rejected': rewards(false) })
    const { kl } = meansOf({ kl: all.map(({ mismatched }) => mismatched) })
    return { ...means, 'rewards/margins': means['rewards/chosen'] - means['rewards/rejected'], kl: Math.max(0, kl) }
  }
}

function startOf({ labels }: Example): number {
  return labels.findIndex((label) => label !== IGNORED)
}

/** A prompt with the answer to another one: how probable it becomes tells how far the model has moved. */
export function withAnswerOf({ text, limit }: JudgedExample, { answer }: JudgedExample): Example {
  const start = startOf(text)
  const inputIds = Int32Array.from([...text.inputIds.subarray(0, start), ...answer]).slice(0, limit)
  return { inputIds, labels: inputIds.slice().fill(IGNORED, 0, start) }
}

function judgedFeeds(judged: readonly { sign: number; weight: number; before: Two }[]): Feeds {
  return {
    [OWN_BEFORE]: columnFeed(judged.map(({ before }) => before[0])),
    [OTHER_BEFORE]: columnFeed(judged.map(({ before }) => before[1])),
    [SIGN]: columnFeed(judged.map(({ sign }) => sign)),
    [WEIGHT]: columnFeed(judged.map(({ weight }) => weight)),
  }
}
