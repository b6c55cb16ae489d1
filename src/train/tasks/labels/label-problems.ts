// transformers' values of `problem_type`: one label, any number of labels, or a number per record, each with its loss,
// targets and metrics.

import { ConfigError, DataError } from '../../../core/base/errors.js'
import { TensorProto_DataType as DataType } from '../../../onnx/format/gen/onnx_pb.js'
import type { Feeds } from '../../../onnx/runtime/runtime.js'
import type { Value } from '../../../onnx/view/builder.js'
import type { ObjectiveGraph } from '../../graph/objective-graph.js'
import { areaUnderCurve, classificationMetrics, pearson, severalMetrics, spearman } from '../metrics.js'

/** The label of a record: one, several, or a number. */
export type Target = string | readonly string[] | number

/** A row of data or an example. `where` is the place of its record, for messages. */
export interface Labeled {
  readonly label: Target
  readonly where: string
}

/** Values of transformers' `problem_type`. */
export type ProblemType = 'single_label_classification' | typeof MULTI | 'regression'

const MULTI = 'multi_label_classification'

export interface LabelOptions {
  /** Default: by the form of the labels. Integers are names of labels, unless this is `regression`. */
  readonly problemType?: ProblemType | undefined
  /**
   * Weight of each label's records in the loss: an object by label, or `balanced` for the inverse of the label's
   * frequency. Default: 1.
   */
  readonly classWeights?: 'balanced' | Readonly<Record<string, number>> | undefined
  /**
   * Share of each target that is spread over all labels.
   * @range a number in [0, 1)
   * @default 0
   */
  readonly labelSmoothing?: number | undefined
}

const MAX_LABELS = 10_000
/** With more labels than this, the metrics leave out the score of each label. */
const MAX_REPORTED = 20

/** Graph inputs of the loss: [row, label], int64 (records, 2), or a target for each logit, float (records, labels). */
const PAIRS = 'loss/labels'
const DENSE = 'loss/targets'

export interface LabelProblem {
  readonly type: ProblemType
  readonly labels: readonly string[]
  check(target: Target, where: string): void
  /** Returns the sum over the records. */
  loss(graph: ObjectiveGraph, logits: Value): Value
  targets(targets: readonly Target[]): Feeds
  normalizer(targets: readonly Target[]): number
  metrics(targets: readonly Target[], logits: readonly Float32Array[]): Record<string, number>
}

/** Chooses the problem by the records. `known`: labels of config.json. `whereOf`: the place of a target's record. */
export function problemOf(
  targets: () => Iterable<Target>,
  known: readonly string[],
  options: LabelOptions,
  whereOf?: (index: number) => string,
): LabelProblem {
  const placeOf = (index: number) => (whereOf === undefined ? 'label' : `${whereOf(index)}, label`)
  const type = options.problemType ?? typeOf(targets(), placeOf)
  const { classWeights, labelSmoothing } = options
  const unused =
    classWeights !== undefined ? 'classWeights' : labelSmoothing !== undefined ? 'labelSmoothing' : undefined
  if (type !== 'single_label_classification' && unused !== undefined) {
    throw new ConfigError({ where: `taskOptions.${unused}`, what: 'only for one label a record', got: type })
  }
  if (type === 'regression') return quantity(targets(), placeOf)
  const labels = labelsOf(targets(), known, placeOf)
  return type === 'single_label_classification' ? oneLabel(labels, targets(), options) : severalLabels(labels)
}

type PlaceOf = (index: number) => string

const KINDS: Readonly<Record<ProblemType, string>> = {
  single_label_classification: 'one label',
  multi_label_classification: 'a list of labels',
  regression: 'a number',
}

function typeOf(targets: Iterable<Target>, placeOf: PlaceOf): ProblemType {
  const firsts = new Map<ProblemType, number>()
  let index = 0
  for (const target of targets) {
    const isText = typeof target === 'string'
    const kind = isText ? 'single_label_classification' : typeof target === 'number' ? 'regression' : MULTI
    if (!firsts.has(kind)) firsts.set(kind, index)
    index++
  }
  // targetOf reads integers as names. If other labels have fractions, the integers are numbers too, and the task is a
  // regression.
  if (firsts.has('regression')) firsts.delete('single_label_classification')
  const [first, second] = firsts.entries()
  if (second === undefined) return first[0]
  throw new DataError({
    where: placeOf(second[1]),
    what: 'records have labels of different kinds',
    expected: `${KINDS[first[0]]}, as in the records before`,
    got: KINDS[second[0]],
  })
}

/** Returns the labels of config.json if they cover the data, else the data's labels, sorted. */
function labelsOf(targets: Iterable<Target>, known: readonly string[], placeOf: PlaceOf): readonly string[] {
  const seen = new Set<string>()
  let index = 0
  let tooMany: number | undefined
  for (const target of targets) {
    for (const label of [target].flat()) seen.add(String(label))
    if (seen.size > MAX_LABELS) tooMany ??= index
    index++
  }
  if (known.length > 1 && [...seen].every((label) => known.includes(label))) return known
  if (seen.size < 2) {
    throw new DataError({
      where: 'label',
      what: 'all records have the same label, so there is nothing to learn',
      got: [...seen].map((label) => JSON.stringify(label)).join(),
    })
  }
  if (tooMany !== undefined) {
    throw new DataError({
      where: placeOf(tooMany),
      what: 'the records have more labels than a head can have',
      expected: `at most ${MAX_LABELS}`,
      got: String(seen.size),
      hint: 'If the labels are numbers to learn, set the task option problemType=regression',
    })
  }
  const isNumbered = [...seen].every((label) => /^\d+$/.test(label))
  return [...seen].sort(isNumbered ? (a, b) => Number(a) - Number(b) : undefined)
}

function numberOf(labels: ReadonlyMap<string, number>, target: Target, where = 'label'): number {
  const id = typeof target === 'string' ? labels.get(target) : undefined
  if (id !== undefined) return id
  throw new DataError({
    where,
    what: 'no record of the training data has it',
    expected: [...labels.keys()].slice(0, 20).join(', '),
    got: JSON.stringify(target),
  })
}

const dense = (values: Float32Array, rows: number): Feeds => ({
  [DENSE]: { type: 'float32', data: values, dims: [rows, values.length / rows] },
})

/** Cross-entropy in nats, with weights and label smoothing as in torch.nn.CrossEntropyLoss. */
function oneLabel(
  labels: readonly string[],
  targets: Iterable<Target>,
  { classWeights, labelSmoothing: smoothing = 0 }: LabelOptions,
): LabelProblem {
  const ids = new Map(labels.map((label, i) => [label, i]))
  const count = labels.length
  const weights = classWeights && weightsOf(ids, classWeights, targets)
  const isPlain = weights === undefined && smoothing === 0
  const weight = (label: number) => weights?.[label] ?? 1
  const numbersOf = (given: readonly Target[]) => given.map((target) => numberOf(ids, target))
  return {
    type: 'single_label_classification',
    labels,
    check: (target, where) => void numberOf(ids, target, where),
    loss(graph, logits) {
      if (isPlain) return graph.crossEntropy(logits, graph.input(PAIRS, DataType.INT64, ['records', 2]))
      const { g } = graph
      const shares = graph.input(DENSE, DataType.FLOAT, ['records', count])
      const logs = g.op('LogSoftmax', [logits], { axis: -1 })
      return g.neg(g.op('ReduceSum', [g.mul(shares, logs)], { keepdims: 0 }))
    },
    targets(given) {
      const numbers = numbersOf(given)
      if (isPlain) {
        const pairs = numbers.flatMap((id, row) => [row, id])
        return { [PAIRS]: { type: 'int64', data: BigInt64Array.from(pairs, BigInt), dims: [given.length, 2] } }
      }
      const shares = new Float32Array(given.length * count)
      numbers.forEach((id, row) => {
        for (let k = 0; k < count; k++) {
          const share = smoothing / count + (k === id ? 1 - smoothing : 0)
          shares[row * count + k] = share * weight(k)
        }
      })
      return dense(shares, given.length)
    },
    normalizer: (given) => numbersOf(given).reduce((sum, id) => sum + weight(id), 0),
    metrics(given, logits) {
      const truth = numbersOf(given)
      const predicted = logits.map((row) => row.indexOf(Math.max(...row)))
      const { scores, ...metrics } = classificationMetrics(truth, predicted)
      const isBinary = count === 2 && new Set(truth).size === 2
      const [isSecond, margins] = [truth.map((id) => id === 1), logits.map(([a, b]) => b - a)]
      const auc = isBinary && { auc: areaUnderCurve(isSecond, margins) }
      return { ...metrics, ...auc, ...reported(labels, scores) }
    },
  }
}

function weightsOf(
  ids: ReadonlyMap<string, number>,
  given: NonNullable<LabelOptions['classWeights']>,
  targets: Iterable<Target>,
): Float64Array {
  const weights = new Float64Array(ids.size).fill(1)
  if (given === 'balanced') {
    const counts = new Float64Array(ids.size)
    for (const target of targets) counts[numberOf(ids, target)]++
    const seen = counts.filter((count) => count > 0)
    const total = seen.reduce((sum, count) => sum + count, 0)
    return weights.map((weight, i) => (counts[i] === 0 ? weight : total / (seen.length * counts[i])))
  }
  for (const [label, weight] of Object.entries(given)) weights[numberOf(ids, label)] = weight
  return weights
}

/** Binary cross-entropy, averaged over the labels, as torch.nn.BCEWithLogitsLoss. */
function severalLabels(labels: readonly string[]): LabelProblem {
  const ids = new Map(labels.map((label, i) => [label, i]))
  const numbersOf = (target: Target, where?: string) => [target].flat().map((label) => numberOf(ids, label, where))
  return {
    type: MULTI,
    labels,
    check: (target, where) => void numbersOf(target, where),
    loss(graph, logits) {
      const { g } = graph
      const targets = graph.input(DENSE, DataType.FLOAT, ['records', labels.length])
      const losses = g.sub(g.op('Softplus', [logits]), g.mul(logits, targets))
      return g.mul(g.op('ReduceSum', [losses], { keepdims: 0 }), g.float(1 / labels.length))
    },
    targets(given) {
      const values = new Float32Array(given.length * labels.length)
      given.forEach((target, row) => {
        for (const id of numbersOf(target)) values[row * labels.length + id] = 1
      })
      return dense(values, given.length)
    },
    normalizer: ({ length }) => length,
    metrics(given, logits) {
      const truth = given.map((target) => new Set(numbersOf(target)))
      const predicted = logits.map((row) => new Set([...row.keys()].filter((i) => row[i] > 0)))
      const { scores, ...metrics } = severalMetrics(truth, predicted, labels.length)
      return { ...metrics, ...reported(labels, scores) }
    },
  }
}

function quantity(targets: Iterable<Target>, placeOf: PlaceOf): LabelProblem {
  const seen = new Set<number>()
  let index = 0
  for (const target of targets) {
    const value = quantityOf(target, placeOf(index++))
    if (seen.size < 2) seen.add(value)
  }
  if (seen.size < 2) {
    throw new DataError({
      where: 'label',
      what: 'all records have the same number, so there is nothing to learn',
      got: [...seen].join(),
    })
  }
  const valuesOf = (given: readonly Target[]) => given.map((target) => quantityOf(target))
  return {
    type: 'regression',
    labels: ['LABEL_0'],
    check: (target, where) => void quantityOf(target, where),
    loss(graph, logits) {
      const { g } = graph
      const difference = g.sub(logits, graph.input(DENSE, DataType.FLOAT, ['records', 1]))
      return g.op('ReduceSum', [g.mul(difference, difference)], { keepdims: 0 })
    },
    targets: (given) => dense(Float32Array.from(valuesOf(given)), given.length),
    normalizer: ({ length }) => length,
    metrics(given, logits) {
      const [truth, predicted] = [valuesOf(given), logits.map(([value]) => value)]
      return { pearson: pearson(truth, predicted), spearman: spearman(truth, predicted) }
    },
  }
}

function quantityOf(target: Target, where = 'label'): number {
  const value = typeof target === 'object' || target === '' ? Number.NaN : Number(target)
  if (Number.isFinite(value)) return value
  throw new DataError({ where, what: 'not a number to learn', got: JSON.stringify(target) })
}

export function reported(labels: readonly string[], scores: readonly number[]): Record<string, number> {
  if (labels.length > MAX_REPORTED) return {}
  return Object.fromEntries(scores.flatMap((score, i) => (Number.isNaN(score) ? [] : [[`f1/${labels[i]}`, score]])))
}

/** Reads a label. Integers become names; the task option `problemType` can turn them back into numbers. */
export function targetOf(label: unknown): Target | undefined {
  const isName = (value: unknown) =>
    typeof value === 'string' || typeof value === 'boolean' || Number.isSafeInteger(value)
  if (isName(label)) return String(label)
  if (typeof label === 'number' && Number.isFinite(label)) return label
  return Array.isArray(label) && label.every(isName) ? label.map(String) : undefined
}
