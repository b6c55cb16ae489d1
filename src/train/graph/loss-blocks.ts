// Computes the loss over a large vocabulary in a Scan over blocks of it, which makes losses and gradients at once. A
// block is combined with earlier blocks by the logarithms of their sums, as in FlashAttention (arXiv 2205.14135).
// Logits live only as long as their block, and only one block of a weight in half precision is float32 at a time.

import { hasLogitBlocks, type LOGIT_BYTES } from '../../model/memory.js'
import { DataType, dimsOf, type GraphProto } from '../../onnx/format/tensors.js'
import { floatAttribute, intAttribute } from '../../onnx/view/attributes.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { sourceOf } from '../../onnx/view/patterns.js'
import { valueInfo } from '../../onnx/view/value-info.js'
import type { LossOfRows, ObjectiveGraph } from './objective-graph.js'

/** Numbers of the weight in a block, 16 MB. Each block is copied, which is cheap in the processor's cache. */
const WEIGHT_FLOATS = 2 ** 22

/**
 * Blocks are used only if the logits are large and the output layer is not adapted or trained, because its gradients
 * would need all logits.
 */
export function lossInBlocks(
  objective: ObjectiveGraph,
  { whole, block }: typeof LOGIT_BYTES,
  hasGradients: boolean,
): void {
  for (const loss of objective.losses) {
    const head = scaledHeadOf(objective, loss.logits) ?? headOf(objective.graph, loss.logits)
    if (head !== undefined && hasLogitBlocks(head.d, whole)) replace(objective, loss, head, block / 4, hasGradients)
  }
}

interface Head {
  /** (m, k) */
  readonly x: Value
  readonly weight: Value
  readonly isHalf: boolean
  readonly transB: number
  /** (d) in float32 */
  readonly bias: Value | undefined
  readonly k: number
  readonly d: number
}

/**
 * Finds an output layer whose logits are multiplied by a number, such as 1 ÷ temperature. Its input x is then
 * multiplied instead.
 */
function scaledHeadOf({ graph, g }: ObjectiveGraph, logits: Value): Head | undefined {
  const scaling = graph.producer(logits)
  if (scaling?.opType !== 'Mul' || !graph.inputs.some(({ name }) => name === scaling.input[1])) return undefined
  const head = headOf(graph, scaling.input[0])
  return head && { ...head, x: g.mul(head.x, scaling.input[1]) }
}

/** Finds the output layer of these logits, if it is a product with a constant, and its bias a constant too. */
function headOf(graph: Graph, logits: Value): Head | undefined {
  const last = graph.producer(sourceOf(graph, logits, ['Cast', 'Identity']).value)
  const added = last?.opType === 'Add' ? last.input.find((value) => isVector(graph, value)) : undefined
  const product = added === undefined ? undefined : last?.input.find((value) => value !== added)
  const node = product === undefined ? last : graph.producer(sourceOf(graph, product, ['Cast', 'Identity']).value)
  if (node?.opType !== 'Gemm' || intAttribute(node, 'transA', 0) === 1) return undefined
  if (floatAttribute(node, 'alpha', 1) !== 1 || floatAttribute(node, 'beta', 1) !== 1) return undefined
  const [x, given, own] = node.input
  const bias = own || added
  if ((own && added) || (bias && !isVector(graph, bias))) return undefined
  const weight = sourceOf(graph, given, ['Cast', 'Identity']).value
  const tensor = graph.constant(weight)
  if (tensor?.dims.length !== 2) return undefined
  const transB = intAttribute(node, 'transB', 0)
  const [k, d] = transB === 1 ? dimsOf(tensor).toReversed() : dimsOf(tensor)
  return { x, weight, isHalf: tensor.dataType !== DataType.FLOAT, transB, bias, k, d }
}

function isVector(graph: Graph, value: Value): boolean {
  return graph.constant(sourceOf(graph, value, ['Cast', 'Identity']).value)?.dims.length === 1
}

function replace(
  { graph, g, customGradients }: ObjectiveGraph,
  { logits, targets, losses, sum, scaled }: LossOfRows,
  head: Head,
  floats: number,
  hasGradients: boolean,
): void {
  const { weight, isHalf, transB, k, d } = head
  const largest = graph.consumers(logits).find(({ opType }) => opType === 'ArgMax')?.output[0]
  // A new name, because bodies of Scan keep reading it if something replaces the value.
  const x = g.op('Identity', [head.x])
  const bias = head.bias && g.op('Identity', [head.bias])
  const count = g.length(x, 0)
  // No multiple of 4 kB: such rows would collide in the cache, and products take longer.
  const most = Math.max(16, 32 * Math.floor(WEIGHT_FLOATS / k / 32) - 16)
  const size = g.op('Min', [g.div(g.int([floats]), g.op('Max', [count, g.int([1])])), g.int([most])])
  const starts = g.unsqueeze(g.op('Range', [g.int(0), g.int(d), g.op('Squeeze', [size])]), [1])
  const lowest = g.expand(g.float(Number.NEGATIVE_INFINITY), count)
  const initial = {
    logSum: lowest,
    ...(hasGradients && { mean: g.expand(g.float(0), g.shape(x)) }),
    ...(largest !== undefined && { highest: lowest, largest: g.expand(g.int(0), count) }),
  }
  const names = Object.keys(initial)
  const body = bodyOf(graph, { ...head, x, bias }, size, names)
  const scan = g.node('Scan', [...Object.values(initial), starts], { body, num_scan_inputs: 1 }, names.length)
  const result = (name: string) => scan.output[names.indexOf(name)]

  const ids = g.op('Squeeze', [g.op('Gather', [targets, g.int([1])], { axis: 1 }), g.int([1])])
  const stored = g.op('Gather', [weight, ids], { axis: 1 - transB })
  const rows = transB === 1 ? stored : g.transpose(stored, [1, 0])
  const ofTargets = isHalf ? g.cast(rows, DataType.FLOAT) : rows
  const products = g.reduceSum(g.mul(x, ofTargets), [1], 0)
  const all = g.sub(result('logSum'), bias === undefined ? products : g.add(products, g.op('Gather', [bias, ids])))
  graph.replaceUses(losses, all)
  if (largest !== undefined) graph.replaceUses(largest, result('largest'))
  if (!hasGradients) return
  customGradients.delete(losses)
  customGradients.set(sum ?? all, {
    inputs: [head.x],
    rule: ({ g, dy }) => [() => scaled(g, g.sub(result('mean'), ofTargets), dy)],
  })
}

/**
 * Builds the body that adds a block, given by its start, to the results of earlier blocks: ln Σ exp(logits) of each
 * row, the weight's rows averaged by these exponentials, and the largest logit with its place.
 */
function bodyOf(outer: Graph, head: Head, size: Value, names: readonly string[]): GraphProto {
  const { x, weight, isHalf, transB, bias, k } = head
  const body = outer.newBody()
  const g = new Builder(body, outer.freshName('loss/block'))
  const before = (name: string) => `${g.scope}/${name}`
  const start = before('start')
  // The name of this dimension must not occur in the outer graph: ONNX Runtime takes dimensions with the same name as
  // equal, and shares memory accordingly.
  const rows = before('rows')
  const info = (name: string, value: Value) =>
    valueInfo(value, name === 'largest' ? DataType.INT64 : DataType.FLOAT, name === 'mean' ? [rows, k] : [rows])
  body.inputs = [...names.map((name) => info(name, before(name))), valueInfo(start, DataType.INT64, [1])]

  const end = g.add(start, size)
  const stored = g.op('Slice', [weight, start, end, g.int([1 - transB])])
  const block = isHalf ? g.cast(stored, DataType.FLOAT) : stored
  const biases = bias === undefined ? [] : [g.op('Slice', [bias, start, end, g.int([0])])]
  const logits = g.op('Gemm', [x, block, ...biases], { transB })
  const highest = g.reduceMax(logits, [1], 0)
  const probabilities = g.op('Softmax', [logits], { axis: 1 })
  // max p = exp(max l) / Σ exp(l), so ln Σ exp(l) = max l − ln(max p)
  const blockLogSum = g.sub(highest, g.op('Log', [g.reduceMax(probabilities, [1], 0)]))
  const larger = g.op('Max', [before('logSum'), blockLogSum])
  const parts = [before('logSum'), blockLogSum].map((part) => g.op('Exp', [g.sub(part, larger)]))
  const total = g.add(parts[0], parts[1])
  const share = (part: Value) => g.unsqueeze(g.div(part, total), [1])
  const outputs: Record<string, () => Value> = {
    logSum: () => g.add(larger, g.op('Log', [total])),
    mean: () => {
      const mean = g.op('Gemm', [probabilities, block], { transB: 1 - transB })
      return g.add(g.mul(before('mean'), share(parts[0])), g.mul(mean, share(parts[1])))
    },
    highest: () => g.op('Max', [before('highest'), highest]),
    largest: () => {
      const place = g.add(g.op('ArgMax', [logits], { axis: 1, keepdims: 0 }), start)
      return g.where(g.op('Greater', [highest, before('highest')]), place, before('largest'))
    },
  }
  body.outputs = names.map((name) => info(name, outputs[name]()))
  return body.toModel().graph as GraphProto
}
