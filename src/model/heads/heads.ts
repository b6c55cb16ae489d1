// Heads: the layers from a model's hidden states to the logits, for training, sessions and merging. head-forms.ts finds
// the head of a model.

import { MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import { formatShape } from '../../core/base/tensor.js'
import type { Builder, Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { HeadForm, HeadLayer } from '../families/family.js'
import { findLinears, type Linear } from '../match/linears.js'
import { appendRows, type HeadInput, HIDDEN_OUTPUTS, rowsAreChosen } from './head-rows.js'

const POOLED = 'pooler_output'

/** The part of a model that a head depends on. `config` is config.json. */
export interface HeadBase {
  readonly config: Readonly<Record<string, unknown>>
  readonly graph: Graph
  readonly linears: readonly Linear[]
}

export function namedLabels({ id2label }: HeadBase['config']): string[] {
  const named = Object.entries(objectOf(id2label))
  return named.sort(([a], [b]) => Number(a) - Number(b)).map(([, label]) => String(label))
}

/** All layers of a new head; of a head that is in the graph, the layers that PEFT saves. */
export function trainedLayers({ layers }: HeadForm, { graph, linears }: HeadBase): readonly HeadLayer[] {
  const isThere = ({ module }: HeadLayer) => linears.some(({ name }) => name === module)
  const first = layers.findIndex(({ module }) => /^(classifier|score)\b/.test(module))
  if (isThere(layers[first])) return layers.slice(first)
  const hasPooled = graph.outputs.some(({ name }) => name === POOLED)
  return hasPooled && layers[0].module.includes('pooler') ? layers.slice(1) : layers
}

export function headWidth({ rows }: HeadForm, { config, linears }: HeadBase, layers: readonly HeadLayer[]): number {
  const isInput = ({ name, isHead }: Linear) => name === layers[0].module || (rows === 'last' && isHead)
  const known = linears.find(isInput)?.k
  if (known !== undefined) return known
  const width = [config.hidden_size, config.dim, config.d_model, config.n_embd].find((value) =>
    Number.isSafeInteger(value),
  )
  if (width !== undefined) return (width as number) * (rows === 'first-and-mean' ? 2 : 1)
  throw new UnsupportedError({ where: 'config.json', what: 'it does not tell the width of the hidden states' })
}

export function headInput(
  form: HeadForm,
  graph: Graph,
  [{ module, isOfEach }]: readonly HeadLayer[],
): HeadInput | undefined {
  const linears = findLinears(graph)
  const layer = linears.find(({ name }) => name === module)
  // A Gemm reads rows that are chosen already: a merge appended this head.
  if (isOfEach && layer !== undefined && layer.form.name !== 'Gemm') return { value: layer.input, rows: form.rows }
  if (layer !== undefined) return inputInGraph(form, graph, layer.input)
  const output = (names: readonly string[]) => graph.outputs.find(({ name }) => names.includes(name))?.name
  if (module !== form.layers[0].module) {
    const value = output([POOLED])
    return value === undefined ? undefined : { value, rows: 'given' }
  }
  const { rows, padTokenId } = form
  const hidden =
    rows === 'last'
      ? linears.find(({ isHead }) => isHead)?.input
      : graph.outputs.find(({ name }) => name !== 'logits')?.name
  const value = output(HIDDEN_OUTPUTS) ?? hidden
  return value === undefined ? undefined : { value, rows, padTokenId }
}

function inputInGraph({ rows, padTokenId }: HeadForm, graph: Graph, value: Value): HeadInput {
  // A head takes the last token. Exported decoders compute the logits of all tokens before that; heads that a merge
  // appended choose the token first.
  if (rows === 'last' && !rowsAreChosen(graph, value)) return { value, rows, padTokenId }
  if (rows !== 'all') return { value, rows: 'given' }
  // A head that a merge appended reads a Flatten. Return the value before it.
  const node = graph.producer(value)
  return { value: node?.opType === 'Flatten' ? node.input[0] : value, rows }
}

export interface PlacedHead {
  readonly layers: readonly HeadLayer[]
  readonly input: HeadInput
  readonly count: number
  readonly tensors: ReadonlySet<string>
  /** True if these layers replace layers of the same name in the graph. */
  readonly isInGraph: boolean
  readonly architecture: string | undefined
}

/**
 * Places an adapter's head in a graph: finds its layers from the first that the adapter replaces. Returns undefined if
 * the adapter replaces none of them.
 */
export function placeHead(
  form: HeadForm,
  base: HeadBase,
  shapeOf: (tensor: string) => readonly number[] | undefined,
): PlacedHead | undefined {
  const isReplaced = form.layers.map(({ module }) => shapeOf(`${module}.weight`) !== undefined)
  const first = isReplaced.indexOf(true)
  if (first === -1) return undefined
  const layers = form.layers.slice(first)
  const missing = layers.find((_, i) => !isReplaced[first + i])
  if (missing !== undefined) {
    throw new MismatchError({
      where: `${missing.module}.weight`,
      what: 'the adapter replaces a layer of the head, but not this one, which follows it',
      hint: 'Train it with all layers of the head in modules_to_save',
    })
  }
  const input = headInput(form, base.graph, layers)
  if (input === undefined) {
    throw new MismatchError({
      where: first === 0 ? 'adapter' : `${form.layers[first - 1].module}.weight`,
      what: 'the head of the adapter needs it, and neither the adapter nor the graph has it',
      got: `outputs ${base.graph.outputs.map(({ name }) => name).join(', ')}`,
      hint: 'Export the model with its pooler or its head, or train with all layers of the head in modules_to_save',
    })
  }
  let count = headWidth(form, base, layers)
  for (const { module, kind } of layers) {
    const weight = shapeOf(`${module}.weight`)!
    const bias = shapeOf(`${module}.bias`) ?? [weight[0]]
    const expected = kind === 'norm' ? [count] : [weight[0], count]
    if (weight.join() !== expected.join() || bias.join() !== String(weight[0])) {
      throw new MismatchError({
        where: `${module}.weight`,
        what: 'the head of the adapter does not fit the model',
        expected: kind === 'norm' ? `(${count})` : `(d, ${count}) and a bias of (d)`,
        got: `${formatShape(weight)} and ${formatShape(bias)}`,
      })
    }
    count = weight[0]
  }
  const tensors = layers.flatMap(({ module }) => [`${module}.weight`, `${module}.bias`])
  const isInGraph = base.linears.some(({ name, isHead }) => isHead && name === layers.at(-1)?.module)
  return { layers, input, count, tensors: new Set(tensors), isInGraph, architecture: form.architecture }
}

/** Returns the logits (batch, labels), or (batch, sequence, labels) if every token gets logits. */
export function appendHead(
  g: Builder,
  input: HeadInput,
  layers: readonly HeadLayer[],
  tensorOf: (tensor: string) => Value | undefined,
): Value {
  let x = appendRows(g, input)
  for (const { module, kind, activation, epsilon = 1e-5 } of layers) {
    const path = module.replaceAll('.', '/')
    const weight = tensorOf(`${module}.weight`)!
    const bias = tensorOf(`${module}.bias`)
    if (kind === 'norm') {
      const centered = g.sub(x, g.reduceMean(x, [-1]))
      const variance = g.reduceMean(g.mul(centered, centered), [-1])
      const scaled = g.div(centered, g.op('Sqrt', [g.add(variance, g.float(epsilon))]))
      x = g.op('Mul', [scaled, weight], {}, `${path}/Mul`)
      if (bias !== undefined) x = g.add(x, bias)
    } else {
      // The node's name lets findLinears recognize the layer later.
      x = g.op('Gemm', bias === undefined ? [x, weight] : [x, weight, bias], { transB: 1 }, `${path}/Gemm`)
    }
    if (activation === 'Gelu') x = gelu(g, x)
    else if (activation !== undefined) x = g.op(activation, [x], {}, `${path}/${activation}`)
  }
  if (input.rows !== 'all') return x
  const shape = g.op('Slice', [g.op('Shape', [input.value]), g.int([0]), g.int([2])])
  return g.op('Reshape', [x, g.op('Concat', [shape, g.int([-1])], { axis: 0 })])
}

function gelu(g: Builder, x: Value): Value {
  const erf = g.op('Erf', [g.mul(x, g.float(Math.SQRT1_2))])
  return g.mul(g.mul(x, g.float(0.5)), g.add(erf, g.float(1)))
}

export function headTensors(
  layers: readonly HeadLayer[],
  width: number,
  count: number,
): { readonly layer: HeadLayer; readonly member: 'weight' | 'bias'; readonly shape: readonly number[] }[] {
  let k = width
  return layers.flatMap((layer, i) => {
    const d = i === layers.length - 1 ? count : (layer.width ?? k)
    const weight = { layer, member: 'weight' as const, shape: layer.kind === 'norm' ? [k] : [d, k] }
    k = d
    return layer.hasBias === false ? [weight] : [weight, { layer, member: 'bias' as const, shape: [d] }]
  })
}
