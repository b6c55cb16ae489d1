// Replaces a product or a lookup of integers by one of floats, for weights that these integers cannot represent.

import { create } from '../../onnx/format/protobuf.js'
import { externalTensor, inlineTensor, TensorProtoSchema } from '../../onnx/format/tensors.js'
import { Builder } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { findProduct } from '../match/forms/forms.js'
import type { Linear } from '../match/linears.js'
import { ownBiasInput, type Place } from '../match/parameters.js'

interface WholeFile {
  readonly location: string
  readonly byteLength: number
}

/**
 * Adds the weight as an initializer of floats, (d, k) or (k, d) as stored. Returns its name and the input that reads
 * it. `contents` are its bytes, or a file with nothing else.
 */
export function toFloats(graph: Graph, linear: Linear, contents: Uint8Array | WholeFile): Place & { weight: string } {
  const { node, form, name, dataType, transposed, k, d } = linear
  const weight = graph.freshName(`${name}.weight`)
  const tensor = create(TensorProtoSchema, { name: weight, dataType, dims: (transposed ? [d, k] : [k, d]).map(BigInt) })
  const isHere = contents instanceof Uint8Array
  graph.addInitializer(isHere ? inlineTensor(tensor, contents) : externalTensor(tensor, { ...contents, offset: 0 }))
  const g = new Builder(graph, node.name)
  const bias = ownBiasInput(node)
  // Branches of an earlier merge come after the product and stay.
  const { last } = form.isLookup ? linear : (findProduct(graph, node) ?? linear)
  let reader = node
  graph.putBehind(last.output[0], () => {
    const values = transposed ? g.op('Transpose', [weight], { perm: [1, 0] }) : weight
    const made = form.isLookup ? g.node('Gather', [values, linear.input]) : g.node('MatMul', [linear.input, values])
    // The module is found by these names.
    made.name = node.name
    made.metadataProps = node.metadataProps
    reader = made
    return bias === undefined ? made.output[0] : g.add(made.output[0], node.input[bias])
  })
  graph.prune()
  return { weight, node: reader, input: form.isLookup ? 0 : 1 }
}
