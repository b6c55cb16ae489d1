// The leading part of the SVD of a matrix that is read in passes: subspace iteration (Halko, Martinsson and Tropp 2011,
// arXiv 0909.4061, algorithms 4.4 and 5.1). Products are in f32, the small problems in f64.

import { Random } from '../base/random.js'
import { F64, type FloatArray, type Matrix, transposeAs, zeros } from '../base/tensor.js'
import { symmetricEigen } from './eigen.js'
import { copyAs, normals, product } from './product.js'
import { orthonormalRows } from './qr.js'
import { type Svd, svd, truncated } from './svd.js'

/** A matrix (d, k) that need not be in memory: each call reads its rows once. */
export interface StreamedMatrix {
  readonly shape: readonly [d: number, k: number]
  /** The sum of the squares of all elements. */
  readonly energy: number
  /** Calls `use` for one block of rows after the other, in f32. `first` is the number of a block's first row. */
  forEachBlock(use: (block: Matrix, first: number) => void): Promise<void>
}

const F32: FloatArray = new Float32Array()

const OVERSAMPLING = 12
const MAX_ITERATIONS = 12
/** Stops when a pass adds less than this share of the energy that is still missing. */
const ENOUGH = 2e-3
const SMALL_SIDE = 128
const SMALL_VALUES = 1 << 20
/** If less than this share of the energy is missing, the rest is rounding error of f32. */
const NEGLIGIBLE = 1e-9

/** u (d, rank), s, vt (rank, k), in f64. ‖M − U·S·Vᵀ‖ is at most a percent above the smallest, usually less. */
export async function streamedSvd(matrix: StreamedMatrix, rank: number): Promise<Svd> {
  const [d, k] = matrix.shape
  if (Math.min(d, k) <= SMALL_SIDE && d * k <= SMALL_VALUES) return truncated(svd(await gathered(matrix)), rank)
  const count = Math.min(rank + OVERSAMPLING, d, k)
  let directions = normals(new Random(0, 'streamed-svd'), count, k) // (q, k)
  let captured = 0
  for (let step = 0; ; step++) {
    const left = orthonormalRows(await timesTransposed(matrix, directions)).rows // (q, d)
    const image = await transposedTimes(matrix, transposeAs(left, F32), count) // (q, k)
    const gram = product(image, image, { transposeB: true })
    const { values } = symmetricEigen(gram)
    const energy = values.subarray(0, rank).reduce((sum, value) => sum + value, 0)
    const missing = matrix.energy - energy
    const isLast = step === MAX_ITERATIONS - 1 || count === Math.min(d, k)
    if (isLast || energy - captured <= ENOUGH * missing || missing <= NEGLIGIBLE * matrix.energy) {
      const { u, s, vt } = truncated(svd(image), rank) // (q, rank), rank, (rank, k)
      return { u: product(left, u, { transposeA: true }), s, vt } // M ≈ leftᵀ·image
    }
    captured = energy
    directions = orthonormalRows(image).rows
  }
}

async function gathered(matrix: StreamedMatrix): Promise<Matrix> {
  const [d, k] = matrix.shape
  const data = new Float64Array(d * k)
  await matrix.forEachBlock((block, first) => data.set(block.data, first * k))
  return { data, shape: [d, k] }
}

/** (M·directionsᵀ)ᵀ: (d, k) @ (k, q) → (q, d), in f64. */
async function timesTransposed(matrix: StreamedMatrix, directions: Matrix): Promise<Matrix> {
  const [d] = matrix.shape
  const q = directions.shape[0]
  const right = copyAs(directions, F32)
  const result = zeros(d, q, F32)
  await matrix.forEachBlock((block, first) => {
    const count = block.shape[0]
    const addTo: Matrix = { data: result.data.subarray(first * q, (first + count) * q), shape: [count, q] }
    product(block, right, { transposeB: true, addTo })
  })
  return transposeAs(result, F64)
}

/** leftᵀ·M for left (d, q): (q, k), whose sum over blocks is in f64. */
async function transposedTimes(matrix: StreamedMatrix, left: Matrix, q: number): Promise<Matrix> {
  const [, k] = matrix.shape
  const result = new Float64Array(q * k)
  const part = zeros(q, k, F32)
  await matrix.forEachBlock((block, first) => {
    const leftF32: Matrix = {
      data: left.data.subarray(first * q, (first + block.shape[0]) * q),
      shape: [block.shape[0], q],
    }
    product(leftF32, block, { transposeA: true, addTo: part })
    for (let i = 0; i < result.length; i++) result[i] += part.data[i]
    part.data.fill(0)
  })
  return { data: result, shape: [q, k] }
}
