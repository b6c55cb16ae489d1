// The head that an adapter brings: the last layers of a classifier, which PEFT saves whole (modules_to_save). Heads are
// small, so they are computed here and not in the graph. A session can thus hold heads of any width, even if its graph
// is quantized or already has a head.

import { UnsupportedError } from '../../core/base/errors.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { requireLabelCount } from '../../lora/requirements.js'
import type { HeadLayer } from '../../model/families/family.js'
import { headOfType } from '../../model/heads/head-forms.js'
import { chooseRows, type HeadInput } from '../../model/heads/head-rows.js'
import { type HeadBase, placeHead } from '../../model/heads/heads.js'
import { cacheBranches } from '../../model/inputs/cache.js'
import { logitsName } from '../../model/match/linears.js'
import { type Feeds, floatsOf, type RuntimeTensor } from '../../onnx/runtime/runtime.js'

interface HeadValues {
  readonly layer: HeadLayer
  /** (d, k), or (d) for a norm */
  readonly weight: Float32Array
  /** (d) */
  readonly bias: Float32Array | undefined
  readonly d: number
  readonly k: number
}

export interface AdapterHead {
  readonly input: HeadInput
  readonly layers: readonly HeadValues[]
  readonly count: number
  readonly labels: readonly string[] | undefined
  readonly problemType: LoraAdapter['problemType']
  /** The output that holds the head's logits. The graph may have an output of this name or not. */
  readonly output: string
  readonly tensors: ReadonlySet<string>
  readonly run: typeof runWithHeads
}

/** Reads the head of an adapter. Returns undefined if none of the tensors that it replaces belong to a head. */
export function readHead(base: HeadBase, adapter: LoraAdapter): AdapterHead | undefined {
  const { graph } = base
  const form = headOfType(adapter.config.taskType, base)
  if (form === undefined) return undefined
  const placed = placeHead(form, base, (name) => adapter.get(name, 'replacement')?.shape)
  if (placed === undefined) return undefined
  const { input, count, tensors, isInGraph } = placed
  if (input.rows === 'last' && cacheBranches(graph).length > 0) {
    throw new UnsupportedError({
      where: adapter.config.taskType ?? 'adapter',
      what: 'its head cannot be computed: the hidden states lie in the branches of an If',
      got: 'a decoder with and without cache in one graph',
      hint: 'Merge the adapter, or use an export with decoder_model.onnx',
    })
  }
  const { labels, problemType } = adapter
  requireLabelCount(labels, count)
  const layers = placed.layers.map((layer) => valuesOf(adapter, layer))
  return {
    input,
    layers,
    count,
    labels,
    problemType,
    output: isInGraph ? logitsName(graph) : 'logits',
    tensors,
    run: runWithHeads,
  }
}

function valuesOf(adapter: LoraAdapter, layer: HeadLayer): HeadValues {
  const weight = adapter.get(`${layer.module}.weight`, 'replacement')!
  const bias = adapter.get(`${layer.module}.bias`, 'replacement')
  const [d, k = d] = weight.shape
  return {
    layer,
    weight: Float32Array.from(weight.weight.data),
    bias: bias && Float32Array.from(bias.weight.data),
    d,
    k,
  }
}

const ACTIVATIONS: Readonly<Record<NonNullable<HeadLayer['activation']>, (value: number) => number>> = {
  Tanh: Math.tanh,
  Relu: (value) => Math.max(0, value),
  Gelu: (value) => (value / 2) * (1 + erf(value * Math.SQRT1_2)),
}

/** The error function: its series near zero, else its continued fraction (Abramowitz and Stegun, 7.1.5 and 7.1.14). */
function erf(x: number): number {
  const a = Math.abs(x)
  if (a >= 2.5) {
    let fraction = 0
    for (let k = 60; k > 0; k--) fraction = k / 2 / (a + fraction)
    return Math.sign(x) * (1 - Math.exp(-a * a) / ((a + fraction) * Math.sqrt(Math.PI)))
  }
  let [term, sum] = [x, x]
  for (let n = 1; n < 60; n++) {
    term *= (-x * x) / n
    sum += term / (2 * n + 1)
  }
  return (2 / Math.sqrt(Math.PI)) * sum
}

export function headLogits({ input, layers, count }: AdapterHead, tensor: RuntimeTensor, feeds: Feeds): RuntimeTensor {
  const { dims } = tensor
  const isWhole = input.rows === 'given' || input.rows === 'all'
  const values = floatsOf(tensor)
  let rows = chooseRows(values, dims, input, feeds)
  const n = isWhole ? values.length / layers[0].k : dims[0]
  for (const layer of layers) rows = through(layer, rows, n)
  return { type: 'float32', data: rows, dims: [...(isWhole ? dims.slice(0, -1) : [n]), count] }
}

function through(values: HeadValues, input: Float32Array, batch: number): Float32Array<ArrayBuffer> {
  const { layer, d, k } = values
  const output = new Float32Array(batch * d)
  const activate = layer.activation === undefined ? (value: number) => value : ACTIVATIONS[layer.activation]
  const layerRow = layer.kind === 'norm' ? normOf : productOf
  for (let row = 0; row < batch; row++) {
    const outputRow = output.subarray(row * d, (row + 1) * d)
    layerRow(values, input.subarray(row * k, (row + 1) * k), outputRow)
    for (let i = 0; i < d; i++) outputRow[i] = activate(outputRow[i])
  }
  return output
}

function productOf({ weight, bias, d, k }: HeadValues, input: Float32Array, output: Float32Array): void {
  for (let i = 0; i < d; i++) {
    let sum = bias?.[i] ?? 0
    for (let j = 0; j < k; j++) sum += input[j] * weight[i * k + j]
    output[i] = sum
  }
}

function normOf({ layer, weight, bias, d }: HeadValues, input: Float32Array, output: Float32Array): void {
  const mean = input.reduce((sum, value) => sum + value, 0) / d
  const variance = input.reduce((sum, value) => sum + (value - mean) ** 2, 0) / d
  const scale = 1 / Math.sqrt(variance + (layer.epsilon ?? 1e-5))
  for (let i = 0; i < d; i++) output[i] = (input[i] - mean) * scale * weight[i] + (bias?.[i] ?? 0)
}

type RunGraph = (feeds: Feeds, outputNames: readonly string[]) => Promise<Record<string, RuntimeTensor>>

/** The heads of a run: one for all rows, or one for each row. Undefined: the row takes the graph's logits. */
type RowHeads = readonly (AdapterHead | undefined)[]

/** Runs the graph and the heads. The heads' logits replace the graph's logits, or are added to its outputs. */
async function runWithHeads(
  run: RunGraph,
  feeds: Feeds,
  heads: RowHeads,
  { wanted, graphOutputs }: { wanted: readonly string[]; graphOutputs: readonly string[] },
): Promise<Record<string, RuntimeTensor>> {
  const all = heads.flatMap((head) => head ?? [])
  const [{ output }] = all
  if (!wanted.includes(output)) return run(feeds, wanted)
  const needsOwn = all.length < heads.length
  if (needsOwn && !graphOutputs.includes(output)) {
    throw new UnsupportedError({
      where: 'adapter',
      what: 'the graph has no logits for rows whose adapter brings no head',
      got: `outputs ${graphOutputs.join(', ')}`,
      hint: 'Run these rows alone',
    })
  }
  const others = wanted.filter((name) => name !== output || needsOwn)
  const values = all.map(({ input }) => input.value)
  const outputs = await run(feeds, [...new Set([...others, ...values])])
  const logits =
    heads.length === 1
      ? headLogits(all[0], outputs[all[0].input.value], feeds)
      : rowLogits(heads, outputs, output, feeds)
  const kept = Object.entries(outputs).filter(([name]) => wanted.includes(name))
  return { ...Object.fromEntries(kept), [output]: logits }
}

function rowLogits(
  heads: RowHeads,
  outputs: Readonly<Record<string, RuntimeTensor>>,
  replaced: string,
  feeds: Feeds,
): RuntimeTensor {
  const rows = heads.map((head, row) => {
    const input = oneRow(outputs[head?.input.value ?? replaced], row)
    const logits = head === undefined ? input : headLogits(head, input, rowFeeds(feeds, row))
    return { values: floatsOf(logits), dims: logits.dims.slice(1) }
  })
  const [{ dims }] = rows
  const different = rows.find((row) => row.dims.join() !== dims.join())
  if (different !== undefined) {
    throw new UnsupportedError({
      where: 'adapter',
      what: 'heads of different sizes cannot share a batch',
      expected: `logits of (${dims.join(', ')}) for each row`,
      got: `(${different.dims.join(', ')})`,
      hint: 'Run the rows of each adapter at a time',
    })
  }
  const size = rows[0].values.length
  const data = new Float32Array(rows.length * size)
  rows.forEach(({ values }, row) => void data.set(values, row * size))
  return { type: 'float32', data, dims: [rows.length, ...dims] }
}

function oneRow({ type, data, dims }: RuntimeTensor, row: number): RuntimeTensor {
  const size = data.length / Math.max(1, dims[0])
  return { type, data: data.slice(row * size, (row + 1) * size), dims: [1, ...dims.slice(1)] }
}

function rowFeeds(feeds: Feeds, row: number): Feeds {
  const perRow = Object.entries(feeds).filter(([, { dims }]) => dims.length === 2)
  return Object.fromEntries(perRow.map(([name, tensor]) => [name, oneRow(tensor, row)]))
}
