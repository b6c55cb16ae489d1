// Convolutions with kernel 1: linear layers over channels, (B, k, …) → (B, d, …). Not in the table of forms, because
// the model's module may be a convolution or a linear layer, and adapters of both kinds fit.

import { dimsOf } from '../../../onnx/format/tensors.js'
import { intAttribute, intsAttribute } from '../../../onnx/view/attributes.js'
import { Builder } from '../../../onnx/view/builder.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { operatorOf } from '../../../onnx/view/operators.js'
import { sourceOf } from '../../../onnx/view/patterns.js'
import { nodeScope, parameterModule } from '../linears.js'
import { moduleFinder } from '../match.js'
import { ofModule } from '../module-names.js'
import { FLOAT_DTYPES, MATMUL, openFloatLines } from './float-product.js'
import { type Form, type Linear, productOf } from './form.js'
import { viewOf } from './integers.js'

/** A number of axes that no tensor has. */
const MANY = 99

export const POINTWISE: Form = {
  name: 'Conv',
  isQuantized: false,

  find(graph, node) {
    if (operatorOf(node) !== 'Conv' || intAttribute(node, 'group', 1) !== 1) return undefined
    const moves = (name: string, still: number) => intsAttribute(node, name)?.some((value) => value !== still) ?? false
    const { value: weight, castTo } = sourceOf(graph, node.input[1], ['Cast'])
    const tensor = graph.constant(weight)
    if (tensor === undefined || FLOAT_DTYPES[tensor.dataType] === undefined) return undefined
    const [d, k, ...kernel] = dimsOf(tensor)
    if (kernel.some((size) => size !== 1) || moves('strides', 1) || moves('pads', 0)) return undefined
    const dataType = castTo ?? tensor.dataType
    return productOf(POINTWISE, node, { weight, dataType, transposed: true, k, d, layout: 'kernel 1' })
  },

  openLines: openFloatLines,

  expose(graph, product) {
    const { node, weight, d, k } = product
    const { castTo } = sourceOf(graph, node.input[1], ['Cast'])
    const g = new Builder(graph, node.name || node.output[0])
    const isFlat = dimsOf(graph.constant(weight)!).length === 3
    const flat = isFlat ? node.input[0] : g.reshape(node.input[0], g.int([0, 0, -1]))
    const input = g.transpose(flat, [0, 2, 1]) // (B, n, k)
    const view = viewOf(graph, weight, { dims: [d, k] })
    const matmul = g.node('MatMul', [input, g.transpose(castTo === undefined ? view : g.cast(view, castTo), [1, 0])])
    const bias = node.input[2] ?? ''
    const last = bias === '' ? matmul : g.node('Add', [matmul.output[0], bias])
    const part = (from: number, to: number) => g.op('Slice', [g.shape(node.input[0]), g.int([from]), g.int([to])])
    const channels = g.node('Transpose', [last.output[0]], { perm: [0, 2, 1] })
    const whole = () => g.concat([part(0, 1), g.int([d]), part(2, MANY)], 0)
    const back = isFlat ? channels : g.node('Reshape', [channels.output[0], whole()])
    graph.replace(node, back.output)
    return { ...product, form: MATMUL, node: matmul, last, input, output: last.output[0] }
  },
}

export function findPointwise(graph: Graph): Linear[] {
  return graph.nodes.flatMap((node) => {
    const product = POINTWISE.find(graph, node)
    if (product === undefined) return []
    const name = nodeScope(node) ?? parameterModule(product.weight) ?? node.name
    return [{ ...product, name, isHead: false, fused: undefined }]
  })
}

/** Adds convolutions with kernel 1 for missing modules: some exporters write linear layers so. */
export function withPointwise(graph: Graph, linears: readonly Linear[], modules: readonly string[]): Linear[] {
  const { find } = moduleFinder(linears)
  const missing = modules.filter((module) => find(module) === undefined)
  if (missing.length === 0) return [...linears]
  const others = otherPointwise(graph, linears)
  return [...linears, ...new Set(missing.flatMap((module) => ofModule(others, module)))]
}

export function otherPointwise(graph: Graph, linears: readonly Linear[]): Linear[] {
  const names = new Set(linears.map(({ name }) => name))
  return findPointwise(graph).filter(({ name }) => !names.has(name))
}
