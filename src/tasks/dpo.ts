// Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): of two answers to a prompt, the model learns
// to give the better one more probability, and the other one less, compared with the model before training. The loss is
// −ln σ(β·margin), the mean over the pairs.

import { DataError, StateError } from '../base/errors.js'
import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { tokenInputs } from '../graph/inputs/tokens.js'
import { checkWidth } from '../graph/match/continues.js'
import { type Model, requireTokenizer } from '../graph/model-folder.js'
import type { ObjectiveGraph } from '../graph/training/objective-graph.js'
import type { Value } from '../graph/view/builder.js'
import { readGraph } from '../graph/view/graph.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { countTargets, type Example, IGNORED, type ParsedRecord } from '../text/records.js'
import { type AnswerPair, parseAnswerPair } from './answer-pairs.js'
import { causalLm, checkAllTokens, targetFeeds } from './causal-lm.js'
import { DPO_OPTIONS } from './gen/options.js'
import { chooseTargets, PROBED_TARGETS, probeTargets, targetsLength } from './next-tokens.js'
import { meansOf } from './ranking-metrics.js'
import type { EncodeContext, Encoded, OpenTask, Task } from './task.js'
import { ownLength, PROBE_BATCHES, padded, tokenBatch, tokenLengths } from './token-batch.js'

/** A tokenized row: each answer behind its prompt. The tokens of the answer are the labels. */
export interface AnswerExample {
  readonly chosen: Example
  readonly rejected: Example
}

/** How preferences are trained. */
export interface DpoOptions {
  /**
   * How strongly the model is held to what it was before: rewards are this times a difference of ln(probability).
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

const CHOSEN = 'loss/chosen'
const REJECTED = 'loss/rejected'
const REFERENCE = 'loss/reference'

/** Sequences of a pair. */
const SIDES = 2

/** Two numbers, for the chosen and the rejected answer: ln(probability), or a reward. */
type Two = readonly [chosen: number, rejected: number]

export const dpo: Task<AnswerPair, AnswerExample, DpoOptions> = {
  name: 'dpo',
  peftType: 'CAUSAL_LM',
  learns: 'to prefer one answer to another',
  records: [
    { prompt: 'How was the sea?', chosen: 'Calm.', rejected: 'It was a sea.' },
    { chosen: 'The sea was calm.', rejected: 'The sea was a sea.' },
  ],
  use: causalLm.use,
  options: DPO_OPTIONS,

  check: (model) => causalLm.check(model),

  parse: parseAnswerPair,

  encode({ chosen, rejected, where }, context) {
    const encoded = [chosen, rejected].map((record) => encodeAnswer(record, context, where))
    const sides = encoded.flatMap(({ examples }) => examples)
    const notes = [...new Set(encoded.flatMap((one) => one.notes ?? []))]
    if (sides.length < SIDES) return { examples: [], isTruncated: false, notes }
    const { maxLength } = context
    const [own, other] = countedAfter(chosen, sides, context).map((side) => cutTo(side, maxLength))
    const isTruncated = sides.some(({ inputIds }) => inputIds.length > maxLength)
    const areEqual = isSame(own, other)
    if (areEqual) notes.push('have two answers that are the same, and are left out')
    const isUseless = [own, other].some(({ labels }) => countTargets(labels) === 0) || areEqual
    return { examples: isUseless ? [] : [{ chosen: own, rejected: other }], isTruncated, notes }
  },

  tokens({ chosen, rejected }) {
    const labels = [...chosen.labels, ...rejected.labels]
    const ids = Int32Array.from([...chosen.inputIds, ...rejected.inputIds])
    return { ids, counts: (i) => labels[i] !== IGNORED }
  },

  open: (model, _, options = {}) => new Dpo(model, options),
}

/** There is no example where the answer has no token. */
export function encodeAnswer(record: ParsedRecord, context: EncodeContext, where: string): Encoded<Example> {
  const encoded = causalLm.encode(record, { ...context, maxLength: Number.POSITIVE_INFINITY })
  const { examples } = encoded
  if (examples.length < 2) return encoded
  throw new DataError({
    where,
    what: 'the chat template shows the messages of an answer differently once others follow',
    expected: 'answers of one message each',
    got: `${examples.length} messages of the assistant`,
    hint: 'Put all messages but the last one into "prompt"',
  })
}

/** A token at the edge of prompt and answer can be of both, and then belongs to both answers, as in TRL. */
export function countedAfter(
  record: ParsedRecord,
  sides: readonly Example[],
  { model }: EncodeContext,
): readonly Example[] {
  if (record.kind !== 'pair') return sides
  const prompt = requireTokenizer(model).encode(record.prompt)
  const start = Math.min(...sides.map(({ inputIds }) => commonTokens(prompt, inputIds)))
  // Nothing predicts the first token.
  return sides.map(({ inputIds }) => ({ inputIds, labels: inputIds.slice().fill(IGNORED, 0, Math.max(1, start)) }))
}

function commonTokens(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let length = 0
  while (length < a.length && length < b.length && a[length] === b[length]) length++
  return length
}

export function cutTo({ inputIds, labels }: Example, length: number): Example {
  return { inputIds: inputIds.slice(0, length), labels: labels.slice(0, length) }
}

function isSame(a: Example, b: Example): boolean {
  const { length } = a.inputIds
  return length === b.inputIds.length && commonTokens(a.inputIds, b.inputIds) === length
}

class Dpo implements OpenTask<AnswerExample> {
  readonly probe: OpenTask['probe']
  readonly rowsOfExample = SIDES
  readonly #model: Model
  readonly #beta: number
  readonly #smoothing: number
  readonly #inputs: ReturnType<typeof tokenInputs>
  /** ln(probability) before the first step. */
  readonly #references = new WeakMap<AnswerExample, Two>()

  constructor(model: Model, { beta = 0.1, labelSmoothing = 0 }: DpoOptions) {
    this.#model = model
    this.#beta = beta
    this.#smoothing = labelSmoothing
    this.#inputs = tokenInputs(readGraph(model.onnx.proto))
    const [first, second] = PROBE_BATCHES.map(({ batch, sequence }, i) => {
      const texts = Array.from({ length: SIDES * batch }, () => new Int32Array(sequence))
      const targets = PROBED_TARGETS[i]
      return {
        ...this.#feeds(texts, sequence),
        ...probeTargets(targets),
        ...pairFeeds(batch, Array(targets).fill(0), Array(batch).fill(0)),
      }
    })
    const texts = tokenLengths().map((length) => {
      return length.name === 'sequence' ? length : { ...length, probed: twice(length.probed) }
    })
    const [a, b] = PROBE_BATCHES
    const pairs = ownLength('pairs', [a.batch, b.batch], { input: REFERENCE, axis: 0 })
    this.probe = { feeds: [first, second], lengths: [...texts, targetsLength(), pairs] }
  }

  forward(graph: ObjectiveGraph): Value {
    const { g } = graph
    const { choice, targets } = chooseTargets(graph)
    graph.check((shapeOf) => {
      checkAllTokens(shapeOf(choice.all), SIDES)
      checkWidth(this.#model, shapeOf(choice.chosen)?.dims[1])
    })
    const column = g.unsqueeze(graph.rowLosses(choice.chosen, targets), [1])
    // −ln(probability) of each answer, (pairs, 1)
    const [chosen, rejected] = [CHOSEN, REJECTED].map((name) => {
      return g.op('MatMul', [graph.input(name, DataType.FLOAT, ['pairs', 'targets']), column])
    })
    graph.predict(g.op('Concat', [chosen, rejected], { axis: 1 }))
    const reference = graph.input(REFERENCE, DataType.FLOAT, ['pairs', 1])
    const margin = g.mul(g.sub(g.sub(rejected, chosen), reference), g.float(this.#beta))
    // −ln σ(m) = softplus(−m), and −ln σ(−m) is larger by m: cDPO is (1 − ε) of the one and ε of the other.
    const certain = g.op('Softplus', [g.op('Neg', [margin])])
    const each = this.#smoothing === 0 ? certain : g.add(certain, g.mul(margin, g.float(this.#smoothing)))
    return g.reduceSum(each, [0, 1], 0)
  }

  cost({ chosen, rejected }: AnswerExample): number {
    return Math.max(chosen.inputIds.length, rejected.inputIds.length)
  }

  collate(examples: readonly AnswerExample[], length: number): Feeds {
    const sides = [...examples.map(({ chosen }) => chosen), ...examples.map(({ rejected }) => rejected)]
    const labels = sides.map((side) => side.labels)
    const rows = labels.flatMap((own, row) => Array<number>(countTargets(own)).fill(row))
    const references = examples.map((example) => {
      // A reference that is not known is being computed.
      const [chosen, rejected] = this.#references.get(example) ?? [Number.NaN, Number.NaN]
      return chosen - rejected
    })
    return {
      ...this.#feeds(
        sides.map(({ inputIds }) => inputIds),
        length,
      ),
      ...targetFeeds(padded(labels, length, IGNORED), length),
      ...pairFeeds(examples.length, rows, references),
    }
  }

  normalizer(examples: readonly AnswerExample[]): number {
    return examples.length
  }

  content({ chosen, rejected }: AnswerExample): Int32Array[] {
    return [chosen, rejected].flatMap(({ inputIds, labels }) => [inputIds, labels])
  }

  takeReference(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly AnswerExample[]): void {
    logProbabilities(outputs).forEach((two, i) => void this.#references.set(examples[i], two))
  }

  /** The rewards of both answers. */
  predict(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly AnswerExample[]): Two[] {
    return logProbabilities(outputs).map(([chosen, rejected], i): Two => {
      const before = this.#references.get(examples[i])
      if (before === undefined) throw new StateError({ where: 'evaluation', what: 'a pair has no reference' })
      return [this.#beta * (chosen - before[0]), this.#beta * (rejected - before[1])]
    })
  }

  /** In the words of TRL. */
  metrics({ predictions }: { predictions: readonly unknown[] }): Record<string, number> {
    return meansOf(this.values(predictions))
  }

  values(predictions: readonly unknown[]): Record<string, number[]> {
    const rewards = predictions as readonly Two[]
    return {
      'rewards/accuracies': rewards.map(([chosen, rejected]) => (chosen > rejected ? 1 : 0)),
      'rewards/margins': rewards.map(([chosen, rejected]) => chosen - rejected),
      'rewards/chosen': rewards.map(([chosen]) => chosen),
      'rewards/rejected': rewards.map(([, rejected]) => rejected),
    }
  }

  #feeds(texts: readonly Int32Array[], length: number): Feeds {
    const batch = texts.length
    const tokens = tokenBatch(texts, length, this.#model.padTokenId)
    return { ...this.#inputs.feeds(tokens), ...this.#inputs.emptyCache(batch) }
  }
}

function twice([a, b]: readonly [number, number]): [number, number] {
  return [SIDES * a, SIDES * b]
}

/** `rows`: of each target, the row of its answer; those of the chosen ones come first. */
function pairFeeds(pairs: number, rows: readonly number[], references: readonly number[]): Feeds {
  const ofSide = (first: number) => {
    const data = new Float32Array(pairs * rows.length)
    rows.forEach((row, target) => {
      const pair = row - first
      if (pair >= 0 && pair < pairs) data[pair * rows.length + target] = 1
    })
    return { type: 'float32', data, dims: [pairs, rows.length] } as const
  }
  return {
    [CHOSEN]: ofSide(0),
    [REJECTED]: ofSide(pairs),
    [REFERENCE]: { type: 'float32', data: Float32Array.from(references), dims: [pairs, 1] },
  }
}

function logProbabilities(outputs: Readonly<Record<string, RuntimeTensor>>): Two[] {
  const { data, dims } = Object.values(outputs).find((output) => output.dims.length === 2)!
  return Array.from({ length: dims[0] }, (_, i): Two => [-Number(data[2 * i]), -Number(data[2 * i + 1])])
}
