// Turns weights of the base into graph inputs, so that they can be trained: whole tensors, or single rows of embeddings
// and output layers.

import { moduleOf } from '../../lora/part.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import type { Linear } from '../../model/match/linears.js'
import { ownBiasInput, storedValue } from '../../model/match/parameters.js'
import { place, placedOrThrow } from '../../model/place/place.js'
import { NO_FACTS, type PlacedModel } from '../../model/place/placement.js'
import { DataType, type NodeProto } from '../../onnx/format/tensors.js'
import type { CustomGradients } from '../../onnx/gradients/backward.js'
import { floatAttribute, setAttribute } from '../../onnx/view/attributes.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { TrainedTensor } from './objective-graph.js'

/** An interface, so that training without weights of the base loads none of this code. */
export interface BaseOpener {
  /** Tensors that may stay untrained if the loss does not depend on them. */
  readonly optional: ReadonlySet<string>
  /** Throws MismatchError if a tensor is missing or has another shape, UnsupportedError if it cannot be trained. */
  open(graph: Graph, linears: readonly Linear[]): OpenBase
}

export interface OpenBase {
  readonly trained: readonly TrainedTensor[]
  layersOf(linears: readonly Linear[]): Linear[]
  /** `inRows`: for the node of each layer, the layer in the form that computes rows (n, k) → (n, d). */
  openLayers(inRows: ReadonlyMap<NodeProto, Linear>, custom: CustomGradients): void
}

/** @param config the contents of config.json, which say what the graph adds to the weights of norms */
export function baseOpener(
  tensors: readonly WholeTensor[],
  rows: readonly TrainedRows[],
  config: PlacedModel['config'] = {},
): BaseOpener {
  return {
    optional: new Set(tensors.flatMap(({ name, isOptional }) => (isOptional ? [name] : []))),
    open(graph, linears) {
      const whole = openTensors({ graph, linears, embeddings: findEmbeddings(graph), config, use: 'training' }, tensors)
      const g = new Builder(graph, 'trained')
      const ofTokens = openTokenRows(g, rows)
      /** The output layers; empty if the loss needs no logits. */
      let heads: readonly Linear[] = []
      return {
        trained: [...whole.trained, ...ofTokens],
        layersOf(all) {
          heads = all.filter(({ name }) => rows.some((row) => row.heads.includes(name)))
          return [...whole.weights.map(({ linear }) => linear), ...heads]
        },
        openLayers(inRows, custom) {
          for (const { linear, input } of whole.weights) {
            const { node } = inRows.get(linear.node)!
            graph.setInput(node, 1, input)
            setAttribute(node, 'transB', 1)
          }
          for (const { name, tokens, heads: headNames } of rows) {
            for (const head of heads.filter((candidate) => headNames.includes(candidate.name))) {
              openHead(g, inRows.get(head.node)!, { rows: inputOf(name), tokens, custom })
            }
          }
        },
      }
    },
  }
}

function inputOf(name: string): Value {
  return `trained/${name}`
}

export interface WholeTensor {
  /** The tensor's name in the adapter, such as model.norm.weight. */
  readonly name: string
  readonly shape: readonly number[]
  readonly isOptional: boolean
}

/** Rows (m, D) of an embedding that are trained. */
export interface TrainedRows {
  /** The adapter's name, such as model.embed_tokens[tokens] */
  readonly name: string
  /** m different tokens, in order of the rows. */
  readonly tokens: readonly number[]
  readonly features: number
  /** The value is undefined if only an output layer has these rows. */
  readonly embedding: string | undefined
  readonly heads: readonly string[]
}

interface Piece {
  readonly start: number
  readonly end: number
  readonly value: Value
}

/** Makes inputs of all tensors, except weights of linear layers, which it returns. */
function openTensors(model: PlacedModel, tensors: readonly WholeTensor[]) {
  const { graph } = model
  const parts = tensors.map(({ name, shape }) => {
    return { kind: 'replacement', name, module: moduleOf(name), dtype: 'fp32', shape, isTrained: true } as const
  })
  const placements = placedOrThrow(place(model, { parts, isConv1d: false, has: () => false }, NO_FACTS))
  const g = new Builder(graph, 'trained')
  // Inputs (d, k), for when the layers have become Gemms.
  const weights: { readonly linear: Linear; readonly input: Value }[] = []
  const vectors = new Map<NodeProto, { readonly linear: Linear | undefined; readonly inputs: Map<number, Piece[]> }>()
  const trained = tensors.map(({ name, shape }): TrainedTensor => {
    const input = inputOf(name)
    const places = placements.filter(({ part }) => part === name)
    const [offset = 0] = places.flatMap((at) => (at.kind === 'vector' ? at.offset : []))
    const value = offset === 0 ? input : g.add(input, g.float(offset))
    for (const at of places) {
      if (at.kind === 'weight') {
        const { linear } = at
        if (linear.form.isLookup) graph.setInput(linear.node, 0, input)
        else weights.push({ linear, input })
      } else if (at.kind === 'vector') {
        const { node, linear, start = 0 } = at
        const { inputs } = vectors.get(node) ?? vectors.set(node, { linear, inputs: new Map() }).get(node)!
        inputs.set(at.input, [...(inputs.get(at.input) ?? []), { start, end: start + shape[0], value }])
      }
    }
    return { name, input, shape }
  })
  for (const [node, { linear, inputs }] of vectors) {
    const norm = node.opType === 'EmbedLayerNormalization' ? normOfEmbeddings(graph, g, node) : undefined
    for (const [at, pieces] of inputs) {
      const value = joined(graph, g, node.input[at], pieces)
      if (norm !== undefined) graph.setInput(norm, at - GAMMA + 1, value)
      else if (node === linear?.node && linear.form.isQuantized) {
        // The gradient of a quantized product ignores its bias, so the bias is added by a separate Add.
        graph.setInput(node, at, '')
        graph.putBehind(node.output[0], (product) => g.add(product, value), 'product')
      } else graph.setInput(node, at, value)
    }
  }
  return { trained, weights }
}

function joined(graph: Graph, g: Builder, stored: Value, pieces: readonly Piece[]): Value {
  const sorted = [...pieces].sort((a, b) => a.start - b.start)
  const dims = graph.constant(storedValue(graph, stored))?.dims ?? []
  const width = dims.reduce((product, dim) => product * Number(dim), 1)
  const base = (from: number, to: number) => g.slice(g.reshape(stored, g.int([-1])), from, to, 0)
  const parts: Value[] = []
  let end = 0
  for (const piece of sorted) {
    if (piece.start > end) parts.push(base(end, piece.start))
    parts.push(piece.value)
    end = piece.end
  }
  if (end < width) parts.push(base(end, width))
  return parts.length === 1 ? parts[0] : g.concat(parts, 0)
}

/** Index of γ among the inputs of EmbedLayerNormalization; β follows. */
const GAMMA = 5

function normOfEmbeddings(graph: Graph, g: Builder, node: NodeProto): NodeProto {
  const [output] = node.output
  const [gamma, beta] = node.input.slice(GAMMA, GAMMA + 2)
  graph.setOutput(node, 0, graph.freshName(`${output}/fused`))
  const sum = node.output[2] || graph.freshName(`${output}/sum`)
  node.output = [node.output[0], node.output[1] ?? '', sum]
  graph.invalidate()
  const epsilon = { float: floatAttribute(node, 'epsilon', 1e-12) }
  const norm = g.node('LayerNormalization', [sum, gamma, beta], { axis: -1, epsilon })
  graph.setOutput(norm, 0, output)
  return norm
}

/** Lets lookups of these tokens read graph inputs instead of the base's rows. */
export function openTokenRows(g: Builder, rows: readonly TrainedRows[]): TrainedTensor[] {
  const { graph } = g
  const embeddings = findEmbeddings(graph)
  for (const { name, tokens, embedding } of rows) {
    for (const { node, last } of embeddings.filter((lookup) => lookup.name === embedding)) {
      const token = g.unsqueeze(g.cast(node.input[1], DataType.INT64), [-1])
      // Looks rows up by a product with a one-hot matrix (…, m), because its gradient is simple.
      const places = g.cast(g.op('Equal', [token, g.int(tokens)]), DataType.FLOAT)
      const isTrained = g.cast(g.reduceSum(places, [-1]), DataType.BOOL)
      graph.putBehind(last.output[0], (base) => g.where(isTrained, g.matmul(places, inputOf(name)), base))
    }
  }
  return rows.map(({ name, tokens, features }) => ({ name, input: inputOf(name), shape: [tokens.length, features] }))
}

/** Replaces the tokens' logits by x·Rᵀ. ScatterElements can write in place, into the largest tensors of a run. */
function openHead(
  g: Builder,
  { node, last, input }: Linear,
  { rows, tokens, custom }: { rows: Value; tokens: readonly number[]; custom: CustomGradients },
): void {
  const [output] = last.output
  const columns = g.int(tokens)
  const product = g.op('Gemm', [input, rows], { transB: 1 })
  const bias = ownBiasInput(node)
  const rowLogits = bias === undefined ? product : g.add(product, g.op('Gather', [node.input[bias], columns]))
  const places = g.expand(g.unsqueeze(columns, [0]), g.shape(rowLogits))
  const base = g.graph.putBehind(output, (logits) => g.op('ScatterElements', [logits, places, rowLogits], { axis: 1 }))
  custom.set(output, {
    inputs: [base, rowLogits],
    rule: ({ g: back, dy }) => [
      () => back.op('ScatterElements', [dy, places, back.expand(back.float(0), back.shape(rowLogits))], { axis: 1 }),
      () => back.op('Gather', [dy, columns], { axis: 1 }),
    ],
  })
}
