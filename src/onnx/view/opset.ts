// Raises a graph to the operator set of the gradients. Between 11 and 13, axes of some operators became an input, and
// the meaning of Softmax changed: https://onnx.ai/onnx/repo-docs/Changelog.html

import { UnsupportedError } from '../../core/base/errors.js'
import type { NodeProto } from '../format/tensors.js'
import { intAttribute, intsAttribute, makeAttribute } from './attributes.js'
import { Builder } from './builder.js'
import { type Graph, subgraphs } from './graph.js'
import { entryOf, labelOf } from './operators.js'

/** Exporters have not written older operator sets since 2020. */
const OLDEST = 11

/** The first operator set with LayerNormalization, and with ScatterND and Where as the backward pass uses them. */
export const TRAINING_OPSET = 17

const NOW_INPUTS: Readonly<Record<string, string>> = {
  Squeeze: 'axes',
  Unsqueeze: 'axes',
  ReduceSum: 'axes',
  Split: 'split',
}

const OVER_FLATTENED = new Set(['Softmax', 'LogSoftmax', 'Hardmax'])

export function raiseOpset(graph: Graph): void {
  const opset = graph.opset()
  if (opset >= TRAINING_OPSET) return
  if (opset < OLDEST) {
    throw new UnsupportedError({
      where: 'gradients',
      what: 'the graph uses an operator set that is too old',
      expected: `${OLDEST} or newer`,
      got: `${opset}`,
      hint: 'Export it again with a current exporter',
    })
  }
  if (opset < 13) for (const node of [...graph.nodes]) raiseNode(graph, node)
  graph.requireOpset('', TRAINING_OPSET)
}

function raiseNode(graph: Graph, node: NodeProto): void {
  if (node.domain !== '' && node.domain !== 'ai.onnx') return
  const inner = subgraphs(node).flatMap((subgraph) => subgraph.node)
  const changed = inner.find(({ opType }) => Object.hasOwn(NOW_INPUTS, opType) || OVER_FLATTENED.has(opType))
  if (changed !== undefined) {
    throw new UnsupportedError({
      where: labelOf(node),
      what: `${changed.opType} of an old operator set inside of it`,
      hint: 'Export the graph again with operator set 17',
    })
  }
  const g = new Builder(graph, 'opset')
  const attributeName = entryOf(NOW_INPUTS, node.opType)
  const values = attributeName === undefined ? undefined : intsAttribute(node, attributeName)
  if (values !== undefined) {
    node.input = [node.input[0], g.int(values)]
    node.attribute = node.attribute.filter(({ name }) => name !== attributeName)
  } else if (node.opType === 'Dropout') {
    node.opType = 'Identity' // as it is outside of training
    node.attribute = []
    node.input = [node.input[0]]
  } else if (OVER_FLATTENED.has(node.opType)) {
    const axis = intAttribute(node, 'axis', 1)
    node.attribute = [makeAttribute('axis', -1)]
    if (axis !== -1) overFlattened(g, node, axis)
  }
  graph.invalidate()
}

/** Makes y = f(x) over all axes from `axis` on, as if they were one. */
function overFlattened(g: Builder, node: NodeProto, axis: number): void {
  const [x] = node.input
  const [y] = node.output
  const rows = g.graph.freshName(`${y}/rows`)
  node.input = [g.op('Flatten', [x], { axis })]
  node.output = [rows]
  g.node('Reshape', [rows, g.shape(x)]).output[0] = y
}
