// The interface of the dense kernels. reference.ts is the definition of correct; faster ones must agree with it.

import type { FloatArray } from '../base/tensor.js'

/**
 * Dense kernels over row-major arrays of one precision. Sums are accumulated in the arrays' precision or a higher one.
 * No argument may alias `out`, except where stated.
 */
export interface Kernels {
  readonly name: string
  /** out (m, n) = alpha · op(a) (m, k) @ op(b) (k, n) + beta · out. With beta 0, out's old content is not read. */
  gemm(options: GemmOptions): void
}

export interface GemmOptions {
  m: number
  n: number
  k: number
  a: FloatArray
  /** a is stored (k, m). Default false. */
  transposeA?: boolean
  b: FloatArray
  /** b is stored (n, k). Default false. */
  transposeB?: boolean
  out: FloatArray
  /** Default 1. */
  alpha?: number
  /** Default 0. */
  beta?: number
}
