// The gradient of a product with a quantized weight: dx = dy·W, where W is dequantized again in each run. Rounding of
// the inputs to integers is ignored (the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432).

import { DEQUANTIZERS } from '../../model/match/forms/dequantize.js'
import type { Product } from '../../model/match/forms/form.js'
import type { CustomGradient } from '../../onnx/gradients/backward.js'
import { rankOf } from '../../onnx/gradients/context.js'
import { inRows, outOfRows } from '../../onnx/gradients/matmul.js'
import type { Builder, Value } from '../../onnx/view/builder.js'

/** Returns the gradient rule, or undefined if the weight cannot be dequantized in the graph. */
export function quantizedGradient(product: Product): CustomGradient | undefined {
  const { form, input, transposed } = product
  const dequantizer = DEQUANTIZERS[form.name]
  if (dequantizer === undefined || product.problem !== undefined) return undefined
  return {
    inputs: [input],
    rule: (context) => [
      () => {
        const { g, outputs, dy } = context
        const rows = inRows(context, dy, rankOf(context, outputs[0]))
        const dx =
          byBlocks(g, product, rows) ??
          g.op('Gemm', [rows, dequantizer.whole(g, product)], { transB: transposed ? 0 : 1 })
        return outOfRows(context, dx, input)
      },
    ],
  }
}

/** The most weights that are dequantized at a time (16 MB): an output layer is often ten times as large as others. */
const MOST_FLOATS = 2 ** 22
/** Products are fastest if their sizes are multiples of this number. */
const MULTIPLE = 64

/** Cuts a stored weight (d, k) into blocks of rows: [first, count] of each block. */
function weightBlocks({ d, k }: Product): [number, number][] {
  const count = Math.ceil(d / Math.ceil((d * k) / MOST_FLOATS) / MULTIPLE) * MULTIPLE
  return Array.from({ length: Math.ceil(d / count) }, (_, i) => [i * count, Math.min(count, d - i * count)])
}

export function isMadeWhole(product: Product): boolean {
  return weightBlocks(product).length === 1
}

/**
 * Multiplies dy (n, d) by a large weight (d, k) that is dequantized block by block. Returns undefined if the weight is
 * small, or if its rows cannot be dequantized in blocks.
 */
function byBlocks(g: Builder, product: Product, dy: Value): Value | undefined {
  const dequantizer = DEQUANTIZERS[product.form.name]
  const blocks = weightBlocks(product)
  if (isMadeWhole(product)) return undefined
  // These nodes come before all products. Then ONNX Runtime dequantizes each block right before its product.
  const weights = blocks.map(([first, count]) => dequantizer?.rows?.(g, product, first, count))
  if (!weights.every((weight) => weight !== undefined)) return undefined
  const parts = blocks.map(([first, count]) => g.slice(dy, first, first + count, 1))
  return parts.reduce<Value | undefined>(
    (sum, part, i) => g.op('Gemm', sum === undefined ? [part, weights[i]] : [part, weights[i], sum]),
    undefined,
  )
}
