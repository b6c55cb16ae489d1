// Chooses the hidden states that a head reads, as transformers does: with nodes in a graph, or from a run's outputs.
// Also appends the pooling of token vectors to a graph.

import { listed, UnsupportedError } from '../../core/base/errors.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import { markDistinct } from '../../onnx/gradients/layout.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Builder, Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { HeadRows } from '../families/family.js'
import { POOLINGS, type Pooling, type SentenceModules } from '../sentence-modules.js'

export interface HeadInput {
  /** (batch, sequence, k), or (n, k) if `rows` is `given` */
  readonly value: Value
  readonly rows: HeadRows | 'given'
  readonly padTokenId?: number | undefined
}

const IDS = 'input_ids'
const MASK = 'attention_mask'

export function appendRows(g: Builder, input: HeadInput): Value {
  const { value, rows } = input
  switch (rows) {
    case 'given':
      return value
    case 'all':
      return g.op('Flatten', [value], { axis: -1 })
    case 'last':
      return lastRows(g, input)
    case 'mean':
      return takes(g, MASK) ? appendPooling(g, value, 'mean') : g.reduceMean(value, [1], 0)
    case 'first':
    case 'first-and-mean': {
      const first = g.op('Gather', [value, g.int(0)], { axis: 1 })
      if (rows === 'first') return first
      const others = g.op('Slice', [value, g.int([1]), g.int([Number.MAX_SAFE_INTEGER]), g.int([1])])
      return g.concat([first, g.reduceMean(others, [1], 0)], -1)
    }
  }
}

/** True if `value` is the result of {@link appendRows} with `last`. */
export function rowsAreChosen(graph: Builder['graph'], value: Value): boolean {
  const node = graph.producer(value)
  return node?.opType === 'Gather' && graph.producer(node.input[0])?.opType === 'Flatten'
}

function lastRows(g: Builder, { value, padTokenId }: HeadInput): Value {
  const shape = g.shape(value)
  const [batch, sequence] = [0, 1].map((axis) => g.op('Gather', [shape, g.int(axis)], { axis: 0 }))
  const count = (length: Value) => g.op('Range', [g.int(0), length, g.int(1)])
  const marks: Value[] = []
  if (padTokenId !== undefined && takes(g, IDS)) {
    const isPad = g.op('Equal', [g.cast(IDS, DataType.INT64), g.int(padTokenId)])
    marks.push(g.cast(g.op('Not', [isPad]), DataType.INT64))
  }
  if (takes(g, MASK)) marks.push(g.cast(MASK, DataType.INT64))
  const marked = () => marks.reduce((places, mark) => g.mul(places, mark), count(sequence))
  const last = marks.length === 0 ? g.sub(sequence, g.int(1)) : g.reduceMax(marked(), [1], 0)
  const rows = g.add(g.mul(count(batch), sequence), last)
  const node = g.node('Gather', [g.op('Flatten', [value], { axis: -1 }), rows], { axis: 0 })
  markDistinct(node)
  return node.output[0]
}

function takes({ graph }: Builder, input: string): boolean {
  return graph.inputs.some(({ name }) => name === input)
}

export function chooseRows(
  values: Float32Array,
  dims: readonly number[],
  { rows, padTokenId }: HeadInput,
  feeds: Feeds,
): Float32Array {
  if (rows === 'given' || rows === 'all') return values
  const [batch, sequence, k] = dims
  const width = rows === 'first-and-mean' ? 2 * k : k
  const result = new Float32Array(batch * width)
  for (let row = 0; row < batch; row++) {
    const states = values.subarray(row * sequence * k, (row + 1) * sequence * k)
    const isReal = (i: number) => Number(feeds[MASK]?.data[row * sequence + i] ?? 1) !== 0
    const isPad = (i: number) => padTokenId !== undefined && Number(feeds[IDS]?.data[row * sequence + i]) === padTokenId
    const places = [...Array(sequence).keys()]
    const target = result.subarray(row * width, (row + 1) * width)
    if (rows === 'mean') addMean(states, places.filter(isReal), target)
    else {
      const last = places.findLastIndex((i) => isReal(i) && !isPad(i))
      const place = rows === 'last' ? Math.max(0, last) : 0
      target.set(states.subarray(place * k, (place + 1) * k))
      if (rows === 'first-and-mean') addMean(states, places.slice(1), target.subarray(k))
    }
  }
  return result
}

function addMean(values: Float32Array, places: readonly number[], mean: Float32Array): void {
  const k = mean.length
  for (let j = 0; j < k; j++) {
    let sum = 0
    for (const i of places) sum += values[i * k + j]
    mean[j] = sum / places.length
  }
}

/** Names that exporters give to the hidden states (batch, sequence, k), best first. */
export const HIDDEN_OUTPUTS: readonly string[] = ['last_hidden_state', 'token_embeddings']

/** Returns the poolings whose vectors stand side by side. Throws UnsupportedError for modules that are not known. */
export function poolingsOf({ pooling, others }: SentenceModules): Pooling[] {
  const named = pooling.split('+')
  const known = POOLINGS.filter((name) => named.includes(name))
  const [extra] = others
  if (extra === undefined && known.length === named.length) return named as Pooling[]
  throw new UnsupportedError({
    where: extra === undefined ? '1_Pooling/config.json' : 'modules.json',
    what: 'this way from tokens to one vector is not implemented',
    expected: extra === undefined ? POOLINGS.join(', ') : 'Transformer, Pooling, Dense and Normalize',
    got: extra ?? pooling,
  })
}

const TRAINED_POOLINGS = ['mean', 'cls', 'lasttoken'] as const

export type TrainedPooling = (typeof TRAINED_POOLINGS)[number]

/** Returns the pooling to train with. Throws UnsupportedError for what only sessions compute. */
export function trainedPooling(sentence: SentenceModules): TrainedPooling {
  const [pooling, ...more] = poolingsOf(sentence)
  const known = TRAINED_POOLINGS.find((name) => name === pooling && more.length === 0)
  if (known !== undefined && !skipsPrompt(sentence)) return known
  throw new UnsupportedError({
    where: '1_Pooling/config.json',
    what: 'vectors that are made in this way run in sessions and cannot be trained',
    expected: `pooling by ${TRAINED_POOLINGS.join(', ')}`,
    got: skipsPrompt(sentence) ? 'include_prompt: false' : sentence.pooling,
    hint: 'Train it with sentence-transformers; `embed` runs the adapter',
  })
}

function skipsPrompt({ includesPrompt, prompt, prompts }: SentenceModules): boolean {
  return !includesPrompt && [prompt, ...Object.values(prompts)].some((text) => text !== '')
}

/**
 * Returns the output with one vector for each text, (batch, k), if the graph computes all modules of the folder.
 * Returns undefined if the prompt has to be left out, because such a graph does not know which tokens it is.
 */
export function textVectors(graph: Graph, sentence: SentenceModules): Value | undefined {
  return givesTextVectors(graph) && !skipsPrompt(sentence) ? TEXT_OUTPUT : undefined
}

/** Removes modules of sentence-transformers from a graph: they are not part of the model that PEFT adapts. */
export function dropTextModules(graph: Graph): void {
  const tokens = graph.outputs.filter(({ name }) => HIDDEN_OUTPUTS.includes(name))
  if (tokens.length === 0 || !givesTextVectors(graph)) return
  graph.outputs = tokens
  graph.prune()
}

const TEXT_OUTPUT = 'sentence_embedding'

function givesTextVectors(graph: Graph): boolean {
  return graph.outputs.some(({ name }) => name === TEXT_OUTPUT)
}

export function tokenVectors(graph: Graph): Value {
  const found = graph.outputs.find(({ name }) => HIDDEN_OUTPUTS.includes(name))
  if (found !== undefined) return found.name
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'it gives no vectors of tokens',
    expected: `an output ${HIDDEN_OUTPUTS.join(' or ')}`,
    got: listed(
      graph.outputs.map(({ name }) => name),
      'outputs',
    ),
    hint: 'Export the encoder alone: optimum-cli export onnx --task feature-extraction',
  })
}

/** Returns (batch, k): the mean over tokens that are not padding, the first or the last of them. */
export function appendPooling(g: Builder, vectors: Value, pooling: TrainedPooling): Value {
  if (pooling === 'cls') return g.op('Gather', [vectors, g.int(0)], { axis: 1 })
  if (pooling === 'lasttoken') return lastRows(g, { value: vectors, rows: 'last' })
  const weights = g.unsqueeze(g.cast(MASK, DataType.FLOAT), [2])
  return g.div(g.reduceSum(g.mul(vectors, weights), [1], 0), g.reduceSum(weights, [1], 0))
}
