// The leading part of a large matrix's SVD: Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), and a block Krylov
// method (Musco and Musco 2015, arXiv 1504.05477), which flat spectra need.

import { ConfigError } from '../base/errors.js'
import { Random } from '../base/random.js'
import { F64, type Matrix, transpose, zeros } from '../base/tensor.js'
import { symmetricEigen, symmetricEigenvalues } from './eigen.js'
import { columnsOf, copyAs, identity, product, stacked } from './product.js'
import { orthonormalRows } from './qr.js'
import { checkFinite, type Svd, svd, transposed } from './svd.js'

/** How many directions a block has beyond the rank. */
const OVERSAMPLING = 10

interface RandomizedSvdOptions {
  /** The most blocks. Each costs two products with the matrix. Default 60. */
  iterations?: number
  /** Stops when a block adds less than this share of the energy captured so far. Default 1e-6. */
  tolerance?: number
}

/** When the basis has this many blocks, it is cut to its best KEPT_BLOCKS and grows again. */
const MAX_BLOCKS = 6
const KEPT_BLOCKS = 2

/** For sides up to this size the full SVD is as fast. */
const SMALL = 128

/** A direction this much shorter than the longest is only rounding error. */
const NEGLIGIBLE = 1e-12

/**
 * u (d, rank), s, vt (rank, k), in f64. Σs² misses the optimum by about `tolerance`. Each block of directions is
 * multiplied by W·Wᵀ and joins a basis (thick-restart block Lanczos with full orthogonalization), and Rayleigh–Ritz on
 * this basis gives the result. If the basis would fill the whole space, W·Wᵀ itself is decomposed.
 */
export function randomizedSvd(weight: Matrix, rank: number, options: RandomizedSvdOptions = {}): Svd {
  const { iterations = 60, tolerance = 1e-6 } = options
  const [d, k] = weight.shape
  const side = Math.min(d, k)
  if (rank > side) {
    throw new ConfigError({ where: 'rank', what: 'not valid', expected: `at most ${side}`, got: `${rank}` })
  }
  checkFinite(weight)
  if (side <= SMALL) return truncated(svd(weight), rank)
  if (d > k) return transposed(randomizedSvd(transpose(weight), rank, options))
  const w = copyAs(weight, F64)
  const block = rank + OVERSAMPLING
  const isFilling = d <= (MAX_BLOCKS + 1) * block
  const basis = isFilling
    ? new KrylovBasis(identity(d), w)
    : krylovBasis(w, rank, block, { random: new Random(0, 'randomized-svd'), iterations, tolerance })
  basis.shrink(rank)
  const { u, s, vt } = svd(basis.image) // (rank, k)
  return { u: product(basis.rows, u, { transposeA: true }), s, vt } // (d, rank) @ (rank, rank)
}

/** Starts from a block of random directions and grows until another block adds next to nothing. */
function krylovBasis(
  w: Matrix,
  rank: number,
  block: number,
  { random, iterations, tolerance }: { random: Random; iterations: number; tolerance: number },
): KrylovBasis {
  const basis = new KrylovBasis(orthonormalRows(normals(random, block, w.shape[0])).rows, w)
  for (let step = 1, energy = 0; step < iterations; step++) {
    const captured = symmetricEigenvalues(basis.gram)
      .subarray(0, rank)
      .reduce((total, value) => total + value, 0)
    if (captured - energy <= tolerance * captured) break
    energy = captured
    basis.grow(random)
  }
  return basis
}

/**
 * u (d, q), s, vt (q, k) from a start (k, q), by `iterations` powers of W·Wᵀ (algorithms 4.4 and 5.1). This is cheaper
 * than {@link randomizedSvd}, but accurate only if the singular values fall quickly.
 */
export function subspaceSvd(weight: Matrix, start: Matrix, iterations: number): Svd {
  checkFinite(weight)
  const w = copyAs(weight, F64)
  const right = copyAs(transpose(start), F64)
  let rows = orthonormalRows(product(right, w, { transposeB: true })).rows // (q, k) @ (k, d) → (q, d)
  for (let i = 0; i < iterations; i++) {
    const image = orthonormalRows(product(rows, w)).rows // (q, d) @ (d, k) → (q, k)
    rows = orthonormalRows(product(image, w, { transposeB: true })).rows // (q, k) @ (k, d) → (q, d)
  }
  const { u, s, vt } = svd(product(rows, w)) // (q, k)
  return { u: product(rows, u, { transposeA: true }), s, vt } // (d, q) @ (q, q)
}

/** N(0, 1) */
export function normals(random: Random, rows: number, columns: number): Matrix {
  const result = zeros(rows, columns, F64)
  for (let i = 0; i < result.data.length; i++) result.data[i] = random.normal()
  return result
}

export function truncated({ u, s, vt }: Svd, rank: number): Svd {
  const k = vt.shape[1]
  return { u: columnsOf(u, 0, rank), s: s.slice(0, rank), vt: { data: vt.data.slice(0, rank * k), shape: [rank, k] } }
}

/** Orthonormal rows, their images under the matrix, and the inner products of these images. */
class KrylovBasis {
  rows: Matrix
  /** rows · W (size, k) */
  image: Matrix
  /** image · imageᵀ = rows · W·Wᵀ · rowsᵀ (size, size) */
  gram: Matrix
  readonly #weight: Matrix
  readonly #block: number

  constructor(rows: Matrix, weight: Matrix) {
    this.#weight = weight
    this.#block = rows.shape[0]
    this.rows = rows
    this.image = product(rows, weight) // (block, d) @ (d, k)
    this.gram = product(this.image, this.image, { transposeB: true })
  }

  get size(): number {
    return this.rows.shape[0]
  }

  /** Multiplies the newest block by W·Wᵀ, and adds the new directions after making room for them. */
  grow(random: Random): void {
    const k = this.image.shape[1]
    const newest: Matrix = { data: this.image.data.slice((this.size - this.#block) * k), shape: [this.#block, k] }
    const next = this.#newDirections(product(newest, this.#weight, { transposeB: true }), random) // (block, k) @ (k, d)
    if (this.size + this.#block > MAX_BLOCKS * this.#block) this.shrink(KEPT_BLOCKS * this.#block)
    const image = product(next, this.#weight) // (block, d) @ (d, k)
    this.rows = stacked([this.rows, next])
    this.image = stacked([this.image, image])
    const shared = product(image, this.image, { transposeB: true }) // (block, k) @ (k, size)
    this.gram = bordered(this.gram, shared)
  }

  /** Keeps only the best `count` directions. */
  shrink(count: number): void {
    const { values, vectors } = symmetricEigen(this.gram)
    const best: Matrix = { data: vectors.data.slice(0, count * this.size), shape: [count, this.size] }
    this.rows = product(best, this.rows) // (count, size) @ (size, d)
    this.image = product(best, this.image) // (count, size) @ (size, k)
    this.gram = zeros(count, count, F64)
    for (let i = 0; i < count; i++) this.gram.data[i * count + i] = values[i]
  }

  #newDirections(directions: Matrix, random: Random): Matrix {
    const d = directions.shape[1]
    this.#project(directions)
    const { rows, diagonal } = orthonormalRows(directions)
    const least = NEGLIGIBLE * largest(this.gram)
    diagonal.forEach((length, i) => {
      if (Math.abs(length) <= least) rows.data.set(normals(random, 1, d).data, i * d)
    })
    this.#project(rows)
    return orthonormalRows(rows).rows
  }

  /** Removes the basis from the directions, twice: after the first time, rounding errors of that size remain. */
  #project(directions: Matrix): void {
    for (let pass = 0; pass < 2; pass++) {
      const shares = product(directions, this.rows, { transposeB: true }) // (block, d) @ (d, size)
      product(shares, this.rows, { scale: -1, addTo: directions }) // (block, size) @ (size, d)
    }
  }
}

/** A symmetric matrix (n, n) with `rows` (b, n + b) below it and to its right. */
function bordered(matrix: Matrix, rows: Matrix): Matrix {
  const [n, size] = [matrix.shape[0], rows.shape[1]]
  const result = zeros(size, size, F64)
  for (let i = 0; i < n; i++) result.data.set(matrix.data.subarray(i * n, (i + 1) * n), i * size)
  for (let i = n; i < size; i++) {
    for (let j = 0; j < size; j++) {
      const value = rows.data[(i - n) * size + j]
      result.data[i * size + j] = value
      result.data[j * size + i] = value
    }
  }
  return result
}

/**
 * The largest element. For a positive semidefinite matrix (n, n) it is at least the largest eigenvalue divided by n.
 */
function largest({ data }: Matrix): number {
  let result = 0
  for (const value of data) result = Math.max(result, value)
  return result
}
