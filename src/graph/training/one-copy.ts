// Products by integers whose weights the gradient reads as well: both then make floats of the same bytes. ONNX Runtime repacks the integers
// of a product of its own, and would hold them twice.

import { isMadeWhole } from '../gradients/quantized.js'
import { findProduct } from '../match/forms/forms.js'
import { ownBiasInput } from '../match/parameters.js'
import type { ShapeMap } from '../shapes/shapes.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/**
 * Replaces such products by a Gemm with the weight as floats, made anew for each run. Weights that are made in blocks stay: their floats would
 * need more memory than the second copy.
 *
 * @param values those that a gradient flows to
 */
export function keepOneCopy(graph: Graph, shapes: ShapeMap, values: ReadonlySet<Value>): void {
  const nodes = [...graph.nodes]
  const weights = new Builder(graph, 'weights')
  const replaced = nodes.flatMap((node) => {
    const product = findProduct(graph, node)
    if (product?.form.dequantizeRows === undefined || product.problem !== undefined || !isMadeWhole(product)) return []
    const { form, input, output, d } = product
    if (!values.has(input) || shapes.get(input)?.dims.length !== 2) return []
    const weight = form.dequantizeRows?.(weights, product, 0, d)
    return weight === undefined ? [] : [{ node, input, output, weight }]
  })
  // In front of all others, so that each is made right before the product that reads it.
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
