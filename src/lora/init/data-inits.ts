// Starts that come from data, with PEFT's results (tuners/lora: layer.py, corda.py, eva.py of 0.21) up to the signs of
// singular vectors.

import { ConfigError, ShapeError, StateError } from '../../base/errors.js'
import { checkArgument, kind } from '../../base/options.js'
import { Random } from '../../base/random.js'
import {
  checkShape,
  F64,
  formatShape,
  halfToEven,
  type Matrix,
  type MatrixLike,
  toMatrix,
  zeros,
} from '../../base/tensor.js'
import { addScaled, copyAs, product } from '../../linalg/product.js'
import type { Svd } from '../../linalg/svd.js'
import { LoraAdapter } from '../adapter.js'
import { addDelta, type FactorPair } from '../delta.js'
import { where } from '../factors.js'
import type { LoraLayer } from '../layer.js'
import { requirePlain } from '../requirements.js'
import { balanced, lastTriples, leadingTriples } from './decomposed.js'
import { changesBase, type Init } from './inits.js'

/** How `loraGaInitialize` turns a gradient into factors; defaults are PEFT's. */
export interface LoraGaOptions {
  /**
   * Which of the gradient's leading 2r singular triples go to A and which to B. Default ArB2r: the first r to A, the
   * next to B.
   */
  direction?: 'ArBr' | 'A2rBr' | 'ArB2r' | 'random' | undefined
  /** How large B is. Default `stable`: d^¼/√γ. */
  scale?: 'stable' | 'weight-svd' | 'gd-scale' | 'unit' | undefined
  /**
   * γ.
   * @range a finite number above 0
   * @default 16
   */
  gamma?: number | undefined
}

export function loraGaInitialize(layer: LoraLayer, gradient: MatrixLike, options: LoraGaOptions = {}): void {
  const { direction = 'ArB2r', scale = 'stable', gamma = 16 } = options
  const weight = originalWeight(layer, 'lora-ga')
  const matrix = toMatrix(gradient, where(layer.name, 'gradient'))
  checkShape(matrix, layer.d, layer.k, where(layer.name, 'gradient'))
  const { rank: r, d, k, scaling } = layer
  if (2 * r > Math.min(d, k)) {
    throw new ConfigError({
      where: where(layer.name, 'rank'),
      what: 'LoRA-GA needs twice as many singular vectors as the rank',
      expected: `at most ${Math.floor(Math.min(d, k) / 2)}`,
      got: `${r}`,
    })
  }
  const { u, s, vt } = leadingTriples(matrix, 2 * r)
  const { forA, forB } = chosenTriples(r, direction, new Random(layer.config.seed, `init/${layer.name}`))
  const largest = s[forB[0]]
  const sizeOfB = {
    stable: () => d ** 0.25 / Math.sqrt(gamma),
    'weight-svd': () => (largest > 0 ? leadingTriples(weight, 1).s[0] / largest : 1),
    'gd-scale': () => 1 / scaling,
    unit: () => 1,
  }[scale]()
  const sizeOfA = scale === 'gd-scale' ? 1 / scaling : 1
  const weightA = zeros(r, k, F64)
  const weightB = zeros(d, r, F64)
  for (let row = 0; row < r; row++) {
    for (let j = 0; j < k; j++) weightA.data[row * k + j] = sizeOfA * vt.data[forA[row] * k + j]
    const size = sizeOfB * s[forB[row]]
    for (let i = 0; i < d; i++) weightB.data[i * r + row] = size * u.data[i * 2 * r + forB[row]]
  }
  startFrom(layer, weight, { weightA, weightB })
}

function chosenTriples(
  r: number,
  direction: NonNullable<LoraGaOptions['direction']>,
  random: Random,
): { forA: number[]; forB: number[] } {
  const all = Array.from({ length: 2 * r }, (_, i) => i)
  switch (direction) {
    case 'ArBr':
      return { forA: all.filter((i) => i % 2 === 1), forB: all.filter((i) => i % 2 === 0) }
    case 'A2rBr':
      return { forA: all.slice(r), forB: all.slice(0, r) }
    case 'ArB2r':
      return { forA: all.slice(0, r), forB: all.slice(r) }
    case 'random': {
      const drawn = random.shuffle(all).slice(0, r)
      return { forA: drawn, forB: drawn }
    }
  }
}

/** How `cordaInitialize` adapts a layer to its inputs; defaults are PEFT's. */
export interface CordaOptions {
  /** `ipm` adapts what the inputs use most, `kpm` what they use least. Default ipm. */
  method?: 'ipm' | 'kpm' | undefined
  /**
   * This factor times the mean of C's diagonal is added to the diagonal.
   * @range a finite number of at least 0
   * @default 0.01
   */
  damping?: number | undefined
}

export function cordaInitialize(layer: LoraLayer, covariance: MatrixLike, options: CordaOptions = {}): void {
  const { method = 'ipm', damping = 0.01 } = options
  const { rank, k, scaling } = layer
  const weight = copyAs(originalWeight(layer, 'corda'), F64)
  const matrix = toMatrix(covariance, where(layer.name, 'covariance'))
  checkShape(matrix, k, k, where(layer.name, 'covariance'))
  const damped = copyAs(matrix, F64)
  let trace = 0
  for (let i = 0; i < k; i++) trace += matrix.data[i * k + i]
  for (let i = 0; i < k; i++) damped.data[i * k + i] += (damping * trace) / k
  const image = product(weight, damped) // (d, k) @ (k, k)
  const { u, s } = method === 'ipm' ? leadingTriples(image, rank) : lastTriples(image, rank)
  // PEFT's V·C⁻¹ is S⁻¹·Uᵀ·W, which needs no inverse.
  const vt = product(u, weight, { transposeA: true }) // (r, d) @ (d, k)
  for (let at = 0; at < vt.data.length; at++) vt.data[at] /= s[Math.floor(at / k)]
  startFrom(layer, weight, balanced({ u, s, vt }, scaling))
}

/** How `loftqInitialize` finds the factors. */
export interface LoftqOptions {
  /**
   * How often Q and s·B·A are found in turns; 1 where Q is given.
   * @range an integer of at least 1
   * @default 1
   */
  iterations?: number | undefined
}

export function loftqInitialize(
  layer: LoraLayer,
  quantize: (weight: Matrix) => MatrixLike,
  { iterations = 1 }: LoftqOptions = {},
): void {
  if (changesBase(layer.config.init)) {
    throw new ConfigError({
      where: where(layer.name, 'init'),
      what: 'LoftQ leaves plain LoRA on another base, and would be saved as something else',
      expected: 'kaiming-uniform',
      got: layer.config.init,
    })
  }
  const weight = effective(layer, 'LoftQ')
  let toQuantize = copyAs(weight, F64)
  for (let i = 0; i < iterations; i++) {
    const quantized = toMatrix(quantize(toQuantize), where(layer.name, 'quantized'))
    checkShape(quantized, layer.d, layer.k, where(layer.name, 'quantized'))
    const loss = addScaled(copyAs(weight, F64), quantized, -1)
    const pair = balanced(leadingTriples(loss, layer.rank), layer.scaling)
    layer.baseWeight = copyAs(quantized, weight.data)
    layer.weightA = pair.weightA
    layer.weightB = pair.weightB
    toQuantize = addDelta(copyAs(weight, F64), pair, -layer.scaling)
  }
}

/** How `evaInitialize` spreads ranks over layers; defaults are PEFT's. */
export interface EvaOptions {
  /**
   * The rank of a layer can become at most ρ times as high. With 1, the ranks do not change.
   * @range a number of at least 1
   * @default 2
   */
  rho?: number | undefined
  /** Divides each direction by the root of its singular value. Default false. */
  whiten?: boolean | undefined
  /** Changes alpha together with the rank, so that the scaling does not change. Default true. */
  adjustAlpha?: boolean | undefined
}

const PAIR = kind('[name, inputs] of a layer', (value) => Array.isArray(value) && typeof value[0] === 'string')

export function evaInitialize(
  adapter: LoraAdapter,
  inputs: Iterable<readonly [name: string, inputs: MatrixLike]>,
  options: EvaOptions = {},
): LoraAdapter {
  const { rho = 2, whiten = false, adjustAlpha = true } = options
  requirePlain(adapter, 'EVA')
  const found = new Map<string, Directions>()
  for (const entry of inputs) {
    checkArgument(entry, PAIR, 'inputs')
    const [name, x] = entry
    const layer = adapter.layer(name)
    const count = Math.min(halfToEven(layer.rank * rho), layer.d, layer.k)
    found.set(name, principalDirections(toMatrix(x, where(name, 'inputs')), layer, count))
  }
  const kept = distributedRanks(adapter, found).filter(({ rank }) => rank > 0)
  const rankPattern: Record<string, number> = {}
  const alphaPattern: Record<string, number> = {}
  for (const { layer, rank } of kept) {
    const alpha = adjustAlpha ? layer.config.alpha * (rank / layer.rank) : layer.config.alpha
    if (rank !== adapter.config.rank) rankPattern[layer.name] = rank
    if (alpha !== adapter.config.alpha) alphaPattern[layer.name] = alpha
  }
  const targetModules = kept.map(({ layer }) => layer.name)
  const result = new LoraAdapter({ ...adapter.config, init: 'eva', targetModules, rankPattern, alphaPattern })
  result.labels = adapter.labels
  result.problemType = adapter.problemType
  for (const { layer: before } of kept) {
    const { name, baseWeight, d, k, dtype } = before
    const layer = baseWeight === undefined ? result.addLayerOfShape(name, [d, k]) : result.addLayer(name, baseWeight)
    layer.dtype = dtype
    const directions = found.get(name)
    if (directions !== undefined) layer.weightA = leadingRows(directions, layer.rank, whiten)
  }
  return result
}

/** W, whatever is in B·A already. */
function originalWeight(layer: LoraLayer, init: Init): Matrix {
  if (layer.config.init !== init) {
    throw new ConfigError({
      where: where(layer.name, 'init'),
      what: 'the layer was made for another start, and would be saved as such',
      expected: init,
      got: layer.config.init,
    })
  }
  return effective(layer, init)
}

/** W + s·B·A, without a magnitude. */
function effective(layer: LoraLayer, use: string): Matrix {
  const { baseWeight, merged } = layer
  if (baseWeight === undefined || merged) {
    throw new StateError({
      where: where(layer.name, 'baseWeight'),
      what: merged ? 'merged' : `missing, and ${use} changes it`,
    })
  }
  return addDelta(copyAs(baseWeight, baseWeight.data), layer, layer.scaling)
}

/** W − s·B·A becomes the base, so that the effective weight is W. */
function startFrom(layer: LoraLayer, weight: Matrix, { weightA, weightB }: FactorPair): void {
  layer.weightA = weightA
  layer.weightB = weightB
  layer.baseWeight = addDelta(copyAs(weight, layer.weightA.data), layer, -layer.scaling)
}

interface Directions extends Pick<Svd, 's' | 'vt'> {
  /** The share of all variance that each direction explains. */
  readonly shares: Float64Array
}

function principalDirections(x: Matrix, layer: LoraLayer, count: number): Directions {
  const [n, k] = x.shape
  if (k !== layer.k || n < count) {
    throw new ShapeError({
      where: where(layer.name, 'inputs'),
      what: k === layer.k ? 'too few rows' : 'wrong shape',
      expected: `(${count} or more, ${layer.k})`,
      got: formatShape(x.shape),
    })
  }
  const centered = copyAs(x, F64)
  const means = new Float64Array(k)
  for (let at = 0; at < centered.data.length; at++) means[at % k] += centered.data[at] / n
  let total = 0
  for (let at = 0; at < centered.data.length; at++) {
    centered.data[at] -= means[at % k]
    total += centered.data[at] ** 2
  }
  const { s, vt } = leadingTriples(centered, count)
  return { s, vt, shares: s.map((value) => (total > 0 ? value ** 2 / total : 0)) }
}

/** Shares of variance decide; the sum over layers with inputs stays. Others keep their own. */
function distributedRanks(
  adapter: LoraAdapter,
  found: ReadonlyMap<string, Directions>,
): { layer: LoraLayer; rank: number }[] {
  const ranks = adapter.parts('linear').map((layer) => ({ layer, rank: found.has(layer.name) ? 0 : layer.rank }))
  const competing = ranks.filter(({ layer }) => found.has(layer.name))
  const budget = competing.reduce((sum, { layer }) => sum + layer.rank, 0)
  const candidates = competing.flatMap((entry) =>
    Array.from(found.get(entry.layer.name)?.shares ?? [], (share) => ({ entry, share })),
  )
  candidates.sort((a, b) => b.share - a.share)
  for (const { entry } of candidates.slice(0, budget)) entry.rank++
  return ranks
}

/** Each row points to where its largest element is positive, as in PEFT. */
function leadingRows({ s, vt }: Directions, rank: number, whiten: boolean): Matrix {
  const k = vt.shape[1]
  const result: Matrix = { data: vt.data.slice(0, rank * k), shape: [rank, k] }
  for (let i = 0; i < rank; i++) {
    const row = result.data.subarray(i * k, (i + 1) * k)
    let largest = 0
    for (const value of row) if (Math.abs(value) > Math.abs(largest)) largest = value
    const factor = Math.sign(largest) / (whiten ? Math.sqrt(s[i]) : 1)
    for (let j = 0; j < k; j++) row[j] *= factor
  }
  return result
}
