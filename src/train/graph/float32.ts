// Makes graphs in half precision compute in float32 for training: gradients would leave the range of float16.

import { DEQUANTIZERS } from '../../model/match/forms/dequantize.js'
import { findProduct } from '../../model/match/forms/forms.js'
import { ownBiasInput } from '../../model/match/parameters.js'
import { DataType, type TensorProto, type ValueInfoProto } from '../../onnx/format/tensors.js'
import type { CustomGradients, GradientPath } from '../../onnx/gradients/backward.js'
import { type Feeds, floatsOf } from '../../onnx/runtime/runtime.js'
import type { ShapeMap } from '../../onnx/shapes/shapes.js'
import { constantTensor, intAttribute, setAttribute } from '../../onnx/view/attributes.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { declaredOf, dimsOfInput, valueInfo } from '../../onnx/view/value-info.js'
import { isMadeWhole } from './quantized.js'

/** Casts weights when they are read; the file stays unchanged. */
export function computeInFloat32(graph: Graph): void {
  const g = new Builder(graph, 'float32')
  const isHalf = (tensor: TensorProto | undefined) => tensor?.dataType === DataType.FLOAT16
  for (const node of [...graph.nodes]) {
    if (node.opType === 'Cast' && intAttribute(node, 'to', 0) === DataType.FLOAT16) {
      setAttribute(node, 'to', DataType.FLOAT)
    } else if (['Constant', 'ConstantOfShape'].includes(node.opType) && isHalf(constantTensor(node))) {
      graph.putBehind(node.output[0], (half) => g.cast(half, DataType.FLOAT), 'half')
    }
  }
  for (const [name, tensor] of [...graph.initializers]) {
    if (!isHalf(tensor)) continue
    const lookups = graph.consumers(name).filter(({ opType, input }) => opType === 'Gather' && input[0] === name)
    const cast = g.node('Cast', [name], { to: DataType.FLOAT })
    graph.replaceUses(name, cast.output[0])
    graph.setInputs(cast, [name])
    // Cast the rows of a lookup, not the whole table.
    for (const node of lookups) {
      graph.setInput(node, 0, name)
      graph.putBehind(node.output[0], (half) => g.cast(half, DataType.FLOAT), 'half')
    }
  }
  graph.inputs = graph.inputs.map(inFloat32)
  graph.outputs = graph.outputs.map(inFloat32)
  graph.valueInfo = graph.valueInfo.map(inFloat32)
}

function inFloat32(info: ValueInfoProto): ValueInfoProto {
  if (declaredOf(info)?.elemType !== DataType.FLOAT16) return info
  const dims = dimsOfInput(info).map((dim, i) => dim ?? `${info.name} ${i}`)
  return valueInfo(info.name, DataType.FLOAT, dims)
}

/** The feeds that a graph takes. A model declares its cache in half precision, which its training takes in float32. */
export function feedsFor(graph: Pick<Graph, 'inputs'>, feeds: Feeds): Feeds {
  const given = graph.inputs.flatMap((input) => {
    const tensor = feeds[input.name]
    if (tensor === undefined) return []
    const isHalf = tensor.type === 'float16' && declaredOf(input)?.elemType === DataType.FLOAT
    return [[input.name, isHalf ? { ...tensor, type: 'float32' as const, data: floatsOf(tensor) } : tensor] as const]
  })
  return Object.fromEntries(given)
}

/** Removes casts to float32 on the path of gradients, where all is float32: they would hide patterns of nodes. */
export function dropCasts(graph: Graph, { nodes }: GradientPath, custom: Readonly<CustomGradients>): void {
  const casts = nodes.filter(({ opType }) => opType === 'Cast')
  if (casts.some((node) => intAttribute(node, 'to', 0) !== DataType.FLOAT)) return
  const named = new Set([...custom.values()].flatMap(({ inputs }) => inputs))
  for (const { input, output } of casts) if (!named.has(output[0])) graph.replaceUses(output[0], input[0])
  graph.prune()
}

/**
 * Turns integer products into Gemms with a dequantized weight, as the gradient reads it: ONNX Runtime repacks integers,
 * and would hold them twice. Not if the gradient dequantizes in blocks, because the floats of the whole weight need
 * more memory than that copy.
 */
export function keepOneCopy(graph: Graph, shapes: ShapeMap, values: ReadonlySet<Value>): void {
  const nodes = [...graph.nodes]
  const weights = new Builder(graph, 'weights')
  const replaced = nodes.flatMap((node) => {
    const product = findProduct(graph, node)
    if (product === undefined || product.problem !== undefined || !isMadeWhole(product)) return []
    const { form, input, output, d } = product
    if (!values.has(input) || shapes.get(input)?.dims.length !== 2) return []
    const weight = DEQUANTIZERS[form.name]?.rows?.(weights, product, 0, d)
    return weight === undefined ? [] : [{ node, input, output, weight }]
  })
  // First in the list, so that ONNX Runtime makes each weight right before its product.
  const makers = graph.nodes.slice(nodes.length)
  const old = new Set(replaced.map(({ node }) => node))
  graph.nodes = [...makers, ...nodes.filter((node) => !old.has(node))]
  graph.invalidate()
  const g = new Builder(graph, 'products')
  for (const { node, input, output, weight } of replaced) {
    const bias = ownBiasInput(node)
    const inputs = bias === undefined ? [input, weight] : [input, weight, node.input[bias]]
    graph.setOutput(g.node('Gemm', inputs, { transB: 1 }), 0, output)
  }
}
