// Starts that come from data: LoRA-GA from a gradient, CorDA and EVA from the inputs of layers, LoftQ from what quantising loses.
// Whoever trains hands these in; the results are PEFT's (tuners/lora: layer.py, corda.py, eva.py of 0.21), up to the signs of singular vectors.

import { ConfigError, ShapeError, StateError } from '../base/errors.js'
import { Random } from '../base/random.js'
import { checkShape, formatShape, type Matrix, type MatrixLike, toMatrix, zeros } from '../base/tensor.js'
import { LoraAdapter } from './adapter.js'
import { balanced, type FactorPair, triples } from './decomposed.js'
import { subtractProduct, where } from './factors.js'
import { changesBase, type Init } from './inits.js'
import type { LoraLayer } from './layer.js'
import { randomizedSvd } from './linalg/randomized-svd.js'
import { type Svd, svd } from './linalg/svd.js'
import { requirePlain } from './plain.js'
import { addScaled, copyAs, product } from './product.js'

const F64 = new Float64Array()
const EXACT = { tolerance: 1e-13, iterations: 400 }

export interface LoraGaOptions {
  /** Which of the gradient's leading 2r singular triples go to A and which to B. Default ArB2r: the first r to A, the next to B. */
  direction?: 'ArBr' | 'A2rBr' | 'ArB2r' | 'random'
  /** How large B is. Default `stable`: d^¼/√γ. */
  scale?: 'stable' | 'weight-svd' | 'gd-scale' | 'unit'
  /** γ. Default 16. */
  gamma?: number
}

/**
 * LoRA-GA (Wang et al. 2024, arXiv 2407.05000): A and B from the singular vectors of the loss's gradient by W (d, k), and
 * W − s·B·A for the base weight, so that the effective weight stays. In place; again with another gradient starts anew.
 *
 * @throws ConfigError when the layer's init is not `lora-ga` or 2r is above min(d, k); StateError without a base weight or while
 *   merged; ShapeError when the gradient is not (d, k)
 */
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
  const { u, s, vt } = randomizedSvd(matrix, 2 * r, EXACT)
  const all = Array.from({ length: 2 * r }, (_, i) => i)
  const drawn = new Random(layer.config.seed, `init/${layer.name}`).shuffle([...all]).slice(0, r)
  const [forA, forB] = {
    ArBr: [all.filter((i) => i % 2 === 1), all.filter((i) => i % 2 === 0)],
    A2rBr: [all.slice(r), all.slice(0, r)],
    ArB2r: [all.slice(0, r), all.slice(r)],
    random: [drawn, drawn],
  }[direction]
  const largest = s[forB[0]]
  const sizeOfB = {
    stable: () => d ** 0.25 / Math.sqrt(gamma),
    'weight-svd': () => (largest > 0 ? randomizedSvd(weight, 1, EXACT).s[0] / largest : 1),
    'gd-scale': () => 1 / scaling,
    unit: () => 1,
  }[scale]()
  const weightA = zeros(r, k, F64)
  const weightB = zeros(d, r, F64)
  const sizeOfA = scale === 'gd-scale' ? 1 / scaling : 1
  for (let row = 0; row < r; row++) {
    for (let j = 0; j < k; j++) weightA.data[row * k + j] = sizeOfA * vt.data[forA[row] * k + j]
    const size = sizeOfB * s[forB[row]]
    for (let i = 0; i < d; i++) weightB.data[i * r + row] = size * u.data[i * 2 * r + forB[row]]
  }
  start(layer, weight, { weightA, weightB })
}

export interface CordaOptions {
  /** `ipm` adapts what the inputs use most, `kpm` what they use least. Default ipm. */
  method?: 'ipm' | 'kpm'
  /** This share of the mean variance is added to each. Default 0.01. */
  damping?: number
}

/**
 * CorDA (Yang et al. 2024, arXiv 2406.05223): the singular triples U·S·Vᵀ of W·C, of which Uᵣ·Uᵣᵀ·W moves into B·A. In place.
 *
 * @param covariance C (k, k) of the layer's inputs: Σ xᵀ·x over batches x (n, k), in PEFT each divided by its largest value
 *   before, over the number of batches. Its size only moves weight between A and B.
 * @throws ConfigError when the layer's init is not `corda`; StateError without a base weight or while merged; ShapeError when the
 *   covariance is not (k, k)
 */
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
  const { u, s } = method === 'ipm' ? randomizedSvd(image, rank, EXACT) : triples(svd(image), rank, true)
  // PEFT's V·C⁻¹ is S⁻¹·Uᵀ·W, which needs no inverse.
  const vt = product(u, weight, { transposeA: true }) // (r, d) @ (d, k)
  for (let at = 0; at < vt.data.length; at++) vt.data[at] /= s[Math.floor(at / k)]
  start(layer, weight, balanced({ u, s, vt }, scaling))
}

/**
 * LoftQ (Li et al. 2023, arXiv 2310.08659): a quantised weight Q in the place of the layer's W (d, k), and in B·A what is nearest to
 * the loss: Q and s·B·A are found in turns, Q = quantize(W − s·B·A) and s·B·A = SVDᵣ(W − Q). In place. As plain LoRA the factors belong
 * to the quantised base. PEFT does not divide by s; the two agree where s = 1.
 *
 * @param quantize a weight (d, k) → what its quantised form stands for; for a base that is quantised already, `() => Q`
 * @param iterations how often; 1 where Q is given. Default 1.
 * @throws ConfigError when iterations is not an integer above 0, or the layer's init takes from the base itself; StateError without
 *   a base weight or while merged; ShapeError when Q is not (d, k)
 */
export function loftqInitialize(
  layer: LoraLayer,
  quantize: (weight: Matrix) => MatrixLike,
  { iterations = 1 }: { iterations?: number } = {},
): void {
  if (changesBase(layer.config.init)) {
    throw new ConfigError({
      where: where(layer.name, 'init'),
      what: 'LoftQ leaves plain LoRA on another base, and would be saved as something else',
      expected: 'kaiming-uniform',
      got: layer.config.init,
    })
  }
  if (!Number.isSafeInteger(iterations) || iterations < 1) {
    throw new ConfigError({
      where: 'iterations',
      what: 'not usable',
      expected: 'an integer of at least 1',
      got: `${iterations}`,
    })
  }
  const weight = effective(layer, 'LoftQ')
  let rest = copyAs(weight, F64)
  for (let i = 0; i < iterations; i++) {
    const quantized = toMatrix(quantize(rest), where(layer.name, 'quantized'))
    checkShape(quantized, layer.d, layer.k, where(layer.name, 'quantized'))
    const loss = addScaled(copyAs(weight, F64), quantized, -1)
    const pair = balanced(randomizedSvd(loss, layer.rank, EXACT), layer.scaling)
    layer.baseWeight = copyAs(quantized, weight.data)
    layer.weightA = pair.weightA
    layer.weightB = pair.weightB
    rest = product(pair.weightB, pair.weightA, { scale: -layer.scaling, addTo: copyAs(weight, F64) })
  }
}

export interface EvaOptions {
  /** A layer's rank may grow to ρ times its own. Default 2; 1 leaves ranks alone. */
  rho?: number
  /** Divides each direction by the root of its singular value. Default false. */
  whiten?: boolean
  /** Alphas follow ranks, so that scalings stay. Default true. */
  adjustAlpha?: boolean
}

/**
 * EVA (Paischer et al. 2024, arXiv 2410.07170): a new adapter whose A hold the principal directions of the layers' inputs, B zero,
 * and whose ranks went to where they explain most, in sum as before. Layers without inputs start as `kaiming-uniform`; layers
 * that get no rank are left out. Base weights are taken along.
 *
 * @param inputs layer name → what went into the layer (n, k), in any order; a layer at a time is held
 * @throws ConfigError when ρ is below 1; MismatchError for a name that is no layer's; ShapeError when inputs are not (n, k), or
 *   fewer rows than ρ·r; UnsupportedError when the adapter has more than plain linear layers
 */
export function evaInitialize(
  adapter: LoraAdapter,
  inputs: Iterable<readonly [name: string, inputs: MatrixLike]>,
  options: EvaOptions = {},
): LoraAdapter {
  const { rho = 2, whiten = false, adjustAlpha = true } = options
  if (!(rho >= 1)) throw new ConfigError({ where: 'rho', what: 'not usable', expected: 'at least 1', got: `${rho}` })
  requirePlain(adapter, 'EVA')
  const found = new Map<string, { svd: Svd; shares: Float64Array }>()
  for (const [name, x] of inputs) {
    const layer = adapter.layer(name)
    const count = Math.min(halfToEven(layer.rank * rho), layer.d, layer.k)
    found.set(name, principal(toMatrix(x, where(name, 'inputs')), layer, count))
  }
  const ranks = distribute(adapter, found)
  const { rank: own, alpha: ownAlpha } = adapter.config
  const rankPattern: Record<string, number> = {}
  const alphaPattern: Record<string, number> = {}
  for (const [name, { rank, config }] of adapter) {
    const ratio = ranks.get(name)! / rank
    const alpha = adjustAlpha && ratio > 0 ? config.alpha * ratio : config.alpha
    if (ranks.get(name) !== own) rankPattern[name] = ranks.get(name)!
    if (alpha !== ownAlpha) alphaPattern[name] = alpha
  }
  const kept = adapter.names().filter((name) => ranks.get(name)! > 0)
  const patterns = { rankPattern: only(rankPattern, kept), alphaPattern: only(alphaPattern, kept) }
  const result = new LoraAdapter({ ...adapter.config, init: 'eva', targetModules: kept, ...patterns })
  for (const name of kept) {
    const { baseWeight, d, k, dtype } = adapter.layer(name)
    const layer = baseWeight === undefined ? result.addLayerOfShape(name, [d, k]) : result.addLayer(name, baseWeight)
    layer.dtype = dtype
    const directions = found.get(name)
    if (directions !== undefined) layer.weightA = leading(directions.svd, layer.rank, whiten)
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
  const { weightA, weightB, scaling } = layer
  return product(weightB, weightA, { scale: scaling, addTo: copyAs(baseWeight, baseWeight.data) })
}

function start(layer: LoraLayer, weight: Matrix, { weightA, weightB }: FactorPair): void {
  layer.weightA = weightA
  layer.weightB = weightB
  const base = copyAs(weight, layer.weightA.data)
  subtractProduct(base, layer.weightB, layer.weightA, layer.config)
  layer.baseWeight = base
}

/** The leading principal directions, and the share of all variance that each explains. */
function principal(x: Matrix, layer: LoraLayer, count: number): { svd: Svd; shares: Float64Array } {
  const [n, k] = x.shape
  if (k !== layer.k || n < count) {
    throw new ShapeError({
      where: where(layer.name, 'inputs'),
      what: k === layer.k ? 'too few rows' : 'wrong shape',
      expected: `(${count} or more, ${layer.k})`,
      got: formatShape(x.shape),
    })
  }
  const centred = copyAs(x, F64)
  const means = new Float64Array(k)
  for (let at = 0; at < centred.data.length; at++) means[at % k] += centred.data[at] / n
  let total = 0
  for (let at = 0; at < centred.data.length; at++) {
    centred.data[at] -= means[at % k]
    total += centred.data[at] ** 2
  }
  const found = randomizedSvd(centred, count, EXACT)
  return {
    svd: { ...found, u: zeros(0, 0, F64) },
    shares: found.s.map((value) => (total > 0 ? value ** 2 / total : 0)),
  }
}

/** Ranks of layers by what their directions explain; their sum over layers with inputs stays. */
function distribute(
  adapter: LoraAdapter,
  found: ReadonlyMap<string, { shares: Float64Array }>,
): ReadonlyMap<string, number> {
  const ranks = new Map<string, number>()
  const shares: { name: string; share: number }[] = []
  let budget = 0
  for (const [name, { rank }] of adapter) {
    const own = found.get(name)
    ranks.set(name, own === undefined ? rank : 0)
    if (own === undefined) continue
    budget += rank
    for (const share of own.shares) shares.push({ name, share })
  }
  shares.sort((a, b) => b.share - a.share)
  for (const { name } of shares.slice(0, budget)) ranks.set(name, ranks.get(name)! + 1)
  return ranks
}

/** The first rows of Vᵀ; each points to where its largest element is positive, as in PEFT. */
function leading({ s, vt }: Svd, rank: number, whiten: boolean): Matrix {
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

function only(pattern: Readonly<Record<string, number>>, names: readonly string[]): Record<string, number> {
  return Object.fromEntries(Object.entries(pattern).filter(([name]) => names.includes(name)))
}

/** Python's round. */
function halfToEven(value: number): number {
  const rounded = Math.round(value)
  return Math.abs(value % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded
}
