// The head that an adapter brings: layers behind the encoder that PEFT saves whole (modules_to_save). They are small, so they are computed
// here and not in the graph. Then heads of any width have room in one session, beside quantized graphs and graphs with a head of their own.

import { f16ToF32 } from '../base/dtype.js'
import { MismatchError, UnsupportedError } from '../base/errors.js'
import { type Linear, logitsName } from '../graph/match/linears.js'
import type { Graph } from '../graph/view/graph.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { loadTaskOfType } from '../tasks/tasks.js'
import { type HeadInput, type HeadLayer, placeHead } from '../tasks/text-heads.js'

/** A layer of a head with its values. */
interface HeadValues {
  readonly activation: HeadLayer['activation']
  /** (d, k) */
  readonly weight: Float32Array
  /** (d) */
  readonly bias: Float32Array | undefined
  readonly d: number
  readonly k: number
}

/** The head of one adapter of a session. */
export interface AdapterHead {
  /** What goes into its first layer: a value of the graph. */
  readonly input: HeadInput
  readonly layers: readonly HeadValues[]
  /** How many logits it gives. */
  readonly count: number
  /** The adapter's own. */
  readonly labels: readonly string[] | undefined
  readonly problemType: LoraAdapter['problemType']
  /** The graph's output that the head's logits take the place of; undefined where the graph has no head. */
  readonly replaces: string | undefined
  /** Names of the adapter's tensors that it is made from. */
  readonly tensors: ReadonlySet<string>
}

/**
 * The head of an adapter; undefined where it has none: it replaces no tensor, or others than those of a head.
 *
 * @throws MismatchError when the head does not fit the model
 */
export async function readHead(
  model: { readonly config?: Readonly<Record<string, unknown>> },
  graph: Graph,
  linears: readonly Linear[],
  adapter: LoraAdapter,
): Promise<AdapterHead | undefined> {
  if (adapter.parts('replacement').length === 0) return undefined
  const task = await loadTaskOfType(adapter.config.taskType)
  const base = { config: model.config ?? {}, graph, linears }
  const form = task?.headForm?.(base)
  if (form === undefined) return undefined
  const placed = placeHead(form, base, (name) => adapter.get(name, 'replacement')?.shape)
  if (placed === undefined) return undefined
  const { input, count, tensors, isInGraph } = placed
  const { labels, problemType } = adapter
  if (labels !== undefined && labels.length !== count) {
    throw new MismatchError({
      where: 'labels',
      what: 'the adapter does not have as many labels as its head has outputs',
      expected: String(count),
      got: labels.join(', '),
    })
  }
  const layers = placed.layers.map((layer) => valuesOf(adapter, layer))
  return { input, layers, count, labels, problemType, replaces: isInGraph ? logitsName(graph) : undefined, tensors }
}

function valuesOf(adapter: LoraAdapter, { module, activation }: HeadLayer): HeadValues {
  const weight = adapter.get(`${module}.weight`, 'replacement')!
  const bias = adapter.get(`${module}.bias`, 'replacement')
  const [d, k] = weight.shape
  return {
    activation,
    weight: Float32Array.from(weight.weight.data),
    bias: bias && Float32Array.from(bias.weight.data),
    d,
    k,
  }
}

const ACTIVATIONS: Readonly<Record<NonNullable<HeadLayer['activation']>, (value: number) => number>> = {
  Tanh: Math.tanh,
  Relu: (value) => Math.max(0, value),
}

/** The logits (batch, labels) of a head over what the graph gave for its input. */
export function headLogits({ input, layers, count }: AdapterHead, tensor: RuntimeTensor): RuntimeTensor {
  const [first] = layers
  const { dims } = tensor
  const batch = dims[0]
  const values = floatsOf(tensor)
  const rowStride = input.isSequence ? dims[1] * dims[2] : dims[1]
  let rows = new Float32Array(batch * first.k)
  for (let row = 0; row < batch; row++) {
    rows.set(values.subarray(row * rowStride, row * rowStride + first.k), row * first.k)
  }
  for (const layer of layers) rows = through(layer, rows, batch)
  return { type: 'float32', data: rows, dims: [batch, count] }
}

function through({ weight, bias, activation, d, k }: HeadValues, input: Float32Array, batch: number) {
  const output = new Float32Array(batch * d)
  const activate = activation === undefined ? (value: number) => value : ACTIVATIONS[activation]
  for (let row = 0; row < batch; row++) {
    for (let i = 0; i < d; i++) {
      let sum = bias?.[i] ?? 0
      for (let j = 0; j < k; j++) sum += input[row * k + j] * weight[i * k + j]
      output[row * d + i] = activate(sum)
    }
  }
  return output
}

/** @throws UnsupportedError for a type that is none of f32 and f16 */
export function floatsOf({ data, type }: RuntimeTensor): Float32Array {
  if (data instanceof Float32Array) return data
  if (data instanceof Uint16Array && type === 'float16') return f16ToF32(data)
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'an output of a type that is not read',
    expected: 'float32, float16',
    got: type,
  })
}

/** What runs the graph with one adapter's factors. */
type RunGraph = (feeds: Feeds, outputNames: readonly string[]) => Promise<Record<string, RuntimeTensor>>

/**
 * A run of the graph in which the head's logits take the place of the graph's own.
 *
 * @param all names of the outputs that the model has
 */
export async function runWithHead(
  run: RunGraph,
  feeds: Feeds,
  outputNames: readonly string[] | undefined,
  { head, all }: { head: AdapterHead | undefined; all: readonly string[] },
): Promise<Record<string, RuntimeTensor>> {
  const wanted = outputNames ?? all
  if (head?.replaces === undefined || !wanted.includes(head.replaces)) return run(feeds, wanted)
  const { value } = head.input
  const others = wanted.filter((name) => name !== head.replaces)
  const { [value]: input, ...outputs } = await run(feeds, [...new Set([...others, value])])
  const logits = { [head.replaces]: headLogits(head, input) }
  return { ...outputs, ...(wanted.includes(value) && { [value]: input }), ...logits }
}
