// Fuses attention and RMS norms, so that steps and gradients take fewer passes over large tensors.

import type { NodeProto } from '../../onnx/format/tensors.js'
import { beforeSwap, lastSwapped } from '../../onnx/gradients/matmul.js'
import { isFloat } from '../../onnx/shapes/plain-shapes.js'
import { isStatic, mapShape, type ProbedShape, type ShapeMap } from '../../onnx/shapes/shapes.js'
import { floatAttribute, intAttribute, intsAttribute, makeAttribute } from '../../onnx/view/attributes.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { bothWays, makerOf, onlyReader, scalarOf, transposed } from '../../onnx/view/patterns.js'
import { unrepeated } from './attention.js'
import { rotate, rotationOf } from './rotary.js'

/** Rewrites norms, rotations and scales among `nodes`, which gradients pass. Adds shapes of new values to `shapes`. */
export function rewriteAttention(graph: Graph, nodes: readonly NodeProto[], shapes: ShapeMap): void {
  const g = new Builder(graph, 'attention')
  const shared = new Map<string, Value>()
  for (const node of nodes) {
    if (node.opType === 'Add') rotateAtOnce(g, node, shapes, shared)
    else if (node.opType === 'MatMul') scaleInPlaceOfKeys(g, node, shapes)
    else if (node.opType === 'Mul' || node.opType === 'Div') {
      if (node.opType === 'Div' || !normAtOnce(g, node, shapes)) scaleQuery(g, node, shapes)
    }
  }
  graph.requireOpset('com.microsoft', 1)
  graph.prune()
}

/** Lets query heads share keys without repeating them. */
export function shareKeys(graph: Graph, nodes: readonly NodeProto[], shapes: ShapeMap): void {
  const g = new Builder(graph, 'shared keys')
  for (const node of nodes) if (node.opType === 'MatMul') groupHeads(g, node, shapes)
  graph.prune()
}

/** Lets products transpose their inputs: a separate Transpose takes longer, and runs on one thread. */
export function fuseTransposes(graph: Graph): void {
  for (const node of graph.nodes) {
    if (node.opType !== 'MatMul' || !node.input.every((value) => isFloat(graph, value))) continue
    const turned = node.input.map((value) => beforeSwap(graph, value))
    if (turned.every((value) => value === undefined)) continue
    node.domain = 'com.microsoft'
    node.opType = 'FusedMatMul'
    node.attribute = ['transA', 'transB'].flatMap((name, i) => (turned[i] === undefined ? [] : makeAttribute(name, 1)))
    graph.setInputs(
      node,
      node.input.map((value, i) => turned[i] ?? value),
    )
  }
  graph.requireOpset('com.microsoft', 1)
  graph.prune()
}

/** From so many columns on, the copy that a Gemm makes takes longer than the reshapes of a convolution. */
const WIDE = 512

/**
 * Turns products that are added to a value into 1 × 1 convolutions, which add in place. A Gemm would copy the value.
 */
export function addInPlace(graph: Graph, shapes: ShapeMap): void {
  const g = new Builder(graph, 'in place')
  for (const node of graph.nodes) {
    const [low, factor, sum] = node.input
    const [, width] = shapes.get(factor)?.dims ?? []
    const isPlain = node.attribute.every(({ name, i }) => name === 'alpha' || (name.startsWith('trans') && i === 0n))
    if (node.opType !== 'Gemm' || !sum || !isPlain || !(width >= WIDE) || graph.initializers.has(factor)) continue
    const isWhole = shapes.get(sum)?.dims.join() === shapes.get(node.output[0])?.dims.join()
    if (!isWhole || !onlyReader(graph, sum, 'Gemm')) continue
    const alpha = floatAttribute(node, 'alpha', 1)
    const scaled = alpha === 1 ? factor : g.mul(factor, g.float(alpha))
    const inputs = [g.unsqueeze(scaled, [0]), g.unsqueeze(low, [2]), '', g.unsqueeze(sum, [0])]
    const y = g.op('com.microsoft:FusedConv', inputs, { kernel_shape: [1] })
    graph.replace(node, [g.reshape(y, g.int([-1, width]))])
  }
  graph.requireOpset('com.microsoft', 1)
}

/** Fuses γ·x/√(mean x² + ε) over the last axis. */
function normAtOnce(g: Builder, node: NodeProto, shapes: ShapeMap): boolean {
  const { graph } = g
  const [y] = node.output
  for (const [gamma, normalized] of bothWays(node)) {
    for (const [x, rho] of bothWays(makerOf(graph, normalized, 'Mul'))) {
      const epsilon = inverseRmsOf(graph, rho, x)
      if (epsilon === undefined || shapes.get(gamma)?.dims.join() !== `${shapes.get(x)?.dims.at(-1)}`) continue
      const norm = g.op('SimplifiedLayerNormalization', [x, gamma], { axis: -1, epsilon: { float: epsilon } })
      shapes.set(norm, shapes.get(y) as ProbedShape)
      graph.replaceUses(y, norm)
      return true
    }
  }
  return false
}

/** Returns the ε of 1/√(mean x² + ε) over the last axis. */
function inverseRmsOf(graph: Graph, value: Value, x: Value): number | undefined {
  const maker = graph.producer(value)
  const isInverse = maker?.opType === 'Reciprocal' || (maker?.opType === 'Div' && scalarOf(graph, maker.input[0]) === 1)
  const root = isInverse ? makerOf(graph, maker.input[maker.input.length - 1], 'Sqrt') : undefined
  for (const [mean, epsilon] of bothWays(makerOf(graph, root?.input[0] ?? '', 'Add'))) {
    const node = makerOf(graph, mean, 'ReduceMean')
    const axes = node && (intsAttribute(node, 'axes') ?? graph.integers(node.input[1]))
    if (node === undefined || axes?.join() !== '-1' || intAttribute(node, 'keepdims', 1) !== 1) continue
    const [power, product] = ['Pow', 'Mul'].map((opType) => makerOf(graph, node.input[0], opType)?.input)
    const isPower = power?.[0] === x && scalarOf(graph, power[1]) === 2
    if (isPower || product?.every((factor) => factor === x)) return scalarOf(graph, epsilon)
  }
  return undefined
}

function rotateAtOnce(g: Builder, { output: [y] }: NodeProto, shapes: ShapeMap, shared: Map<string, Value>): void {
  const shape = shapes.get(y)
  if (shape?.dims.length !== 4 || !isStatic(shape, 3)) return
  const size = shape.dims[3]
  const rotation = rotationOf(g.graph, y, size)
  if (rotation === undefined) return
  const rotated = rotate(g, rotation.x, rotation, size, shared, [0, 2])
  shapes.set(rotated, shape)
  g.graph.replaceUses(y, rotated)
}

/** Turns q·(c·kᵀ) into (c·q)·kᵀ: keys that are not scaled can be shared. */
function scaleInPlaceOfKeys(g: Builder, node: NodeProto, shapes: ShapeMap): void {
  const { graph } = g
  const [query, keys] = node.input
  const shape = shapes.get(query)
  for (const [plain, factor] of bothWays(makerOf(graph, keys, 'Mul'))) {
    const isScale = shapes.get(factor)?.dims.length === 0 && shapes.has(plain)
    if (shape?.dims.length !== 4 || !isScale) continue
    const scaled = g.mul(query, factor)
    shapes.set(scaled, shape)
    graph.setInputs(node, [scaled, plain])
    return
  }
}

/** Turns c·(q·kᵀ) into (c·q)·kᵀ: queries are smaller than scores. */
function scaleQuery(g: Builder, { opType, input, output: [y] }: NodeProto, shapes: ShapeMap): void {
  const { graph } = g
  const factors = bothWays({ input } as NodeProto).slice(0, opType === 'Mul' ? 2 : 1)
  for (const [scores, factor] of factors) {
    const product = makerOf(graph, scores, 'MatMul')
    const isScale = scalarOf(graph, factor) !== undefined && graph.constant(factor)?.dims.length === 0
    if (product === undefined || !isScale || onlyReader(graph, scores, opType) === undefined) continue
    const [query] = product.input
    const shape = shapes.get(query)
    if (shape?.dims.length !== 4 || graph.constant(product.input[1]) !== undefined) continue
    const scaled = g.op(opType, [query, factor])
    shapes.set(scaled, shape)
    graph.setInput(product, 0, scaled)
    graph.replaceUses(y, scores)
    return
  }
}

/**
 * Turns queries (B, heads, S, d) that share keys into rows of one product, so that keys need not be repeated and their
 * gradients need no sum.
 */
function groupHeads(g: Builder, node: NodeProto, shapes: ShapeMap): void {
  const { graph } = g
  const [a, b] = node.input
  const [y] = node.output
  const swap = lastSwapped(4)
  const turned = transposed(graph, b, swap)
  const repeated = turned ?? b
  const key = unrepeated(graph, repeated)
  const [left, right, whole, result] = [a, key, repeated, y].map((value) => shapes.get(value))
  if (key === repeated || left?.dims.length !== 4 || right === undefined || result === undefined) return
  const heads = left.dims[1]
  const keyHeads = right.dims[1]
  if (!isStatic(left, 1) || !isStatic(right, 1) || whole?.dims[1] !== heads || heads % keyHeads !== 0) return
  const merged = (dims: readonly number[]) => [dims[0], keyHeads, (heads / keyHeads) * dims[2], dims[3]]
  const shaped = (value: Value, shape: ProbedShape) => {
    shapes.set(value, shape)
    return value
  }
  const rows = shaped(g.reshape(a, g.int([0, keyHeads, -1, 0])), mapShape(left, merged))
  const swapped = mapShape(right, (dims) => swap.map((axis) => dims[axis]))
  const operand = turned === undefined ? key : shaped(g.transpose(key, swap), swapped)
  const product = shaped(g.matmul(rows, operand), mapShape(result, merged))
  graph.replaceUses(y, shaped(g.reshape(product, g.int([0, heads, -1, 0])), result))
}
