// The gradient of a product by integers: dx = dy·W with the weight as floats, made of the integers anew for each run, so that the weights in
// memory stay small. Where the product makes integers of its input too, the gradient goes straight through (Bengio et al. 2013, arXiv
// 1308.3432).

import type { Product } from '../match/forms/form.js'
import type { CustomGradient } from './backward.js'
import { rankOf, reshapeLike, shapeOf } from './context.js'

/** For forms that can be dequantized in a graph; undefined for others. */
export function quantizedGradient(product: Product): CustomGradient | undefined {
  const { form, input, transposed } = product
  if (form.dequantize === undefined || product.problem !== undefined) return undefined
  return {
    inputs: [input],
    rule: (context) => [
      () => {
        const { g, outputs, dy } = context
        const rank = rankOf(context, outputs[0])
        const rows = rank === 2 ? dy : g.op('Flatten', [dy], { axis: rank - 1 })
        const weight = form.dequantize?.(g, product) as string
        const dx = g.op('Gemm', [rows, weight], { transB: transposed ? 0 : 1 })
        const { dims, other } = shapeOf(context, input)
        const rowsOf = (shape: readonly number[]) => [
          shape.slice(0, -1).reduce((count, dim) => count * dim, 1),
          shape[shape.length - 1],
        ]
        return reshapeLike(context, dx, { dims: rowsOf(dims), other: rowsOf(other) }, input)
      },
    ],
  }
}
