// One adapted weight: y = x·(W + s·B·A)ᵀ with W (d, k), A (r, k), B (d, r) and s from alpha and rank. Hu et al. 2021,
// "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1. Two parts are optional: a
// magnitude for each row (DoRA, Liu et al. 2024, arXiv 2402.09353) and a bias of B (PEFT's lora_bias).

import { NumericError, StateError } from '../base/errors.js'
import { Random } from '../base/random.js'
import {
  checkShape,
  type FloatArray,
  isAllFinite,
  type Matrix,
  type MatrixLike,
  type Tensor,
  toMatrix,
} from '../base/tensor.js'
import { copyAs, inPrecisionOf, normOfProduct, product } from '../linalg/product.js'
import {
  configForFactors,
  configForLayer,
  type LoraConfig,
  type LoraConfigInput,
  resolveConfig,
  resolveConfigOf,
} from './config.js'
import { addDelta, magnitudeScales, rowNorms, scale } from './delta.js'
import { addKept, dropFrom } from './dropout.js'
import {
  copyVector,
  Factors,
  factorsOfShape,
  factorsOver,
  type LayerVectors,
  layerVectors,
  noBase,
  noForward,
  startingBase,
  where,
} from './factors.js'
import { FactorPart, type FactorTensors, factorTensors } from './part.js'
import { addBias, backwardPass, forwardPass, type LayerGradients, type PassWeights, type Tape } from './passes.js'
import { requireAlwaysOn } from './requirements.js'

/**
 * An adapted linear layer: y = x·(W + s·B·A)ᵀ, with W (d, k), A (r, k), B (d, r) and x (n, k).
 *
 * @example
 * const layer = new LoraLayer(baseWeight, { rank: 2, alpha: 4 })
 * const y = layer.forward(x)
 * const { weightA, weightB } = layer.backward(dy)
 * layer.merge() // W + s·B·A is in layer.baseWeight
 * layer.unmerge() // W again, bit for bit
 */
export class LoraLayer extends FactorPart {
  readonly kind = 'linear'
  /** The layer's name in its model, such as `model.layers.0.self_attn.q_proj`; empty for a single layer. */
  readonly name: string
  /**
   * The layer's settings: rank and alpha are those that the config's patterns give its name, and no rank is above what
   * its init can use.
   */
  readonly config: LoraConfig
  readonly #random: Random
  #weightA: Matrix
  #weightB: Matrix
  #magnitude: FloatArray | undefined
  #biasB: FloatArray | undefined
  #baseWeight: Matrix | undefined
  /** Present while merged. */
  #unmerged: Matrix | undefined
  /** `keep` has 0 for dropped elements of the input, and is absent without dropout. */
  #tape: (Tape & { keep: Uint8Array | undefined }) | undefined
  #isTraining: boolean

  /**
   * A new layer over a copy of `baseWeight` W (d, k), in training mode. The config's `init` says how A and B start;
   * draws depend on the seed and the name. With DoRA the magnitude starts as ‖W‖. Some inits subtract s·B·A from the
   * copy. Then the effective weight W + s·B·A is equal to W at the start. Only with `random` it is different.
   *
   * @throws ConfigError when the config is not valid, or the layer's rank is above min(d, k); ShapeError for no matrix
   */
  constructor(baseWeight: MatrixLike, config?: LoraConfigInput, name?: string)
  /** @internal */
  constructor(factors: Factors, config?: LoraConfigInput, name?: string)
  constructor(source: MatrixLike | Factors, config: LoraConfigInput = {}, name = '') {
    super()
    this.name = name
    const own = configForLayer(resolveConfig(config), name)
    const factors = source instanceof Factors ? source : factorsOver(source, own, name)
    this.config = configForFactors(own, factors)
    this.#random = new Random(own.seed, `dropout/${name}`)
    this.#weightA = factors.weightA
    this.#weightB = factors.weightB
    const { magnitude, biasB } = layerVectors(factors, this.config, name)
    this.#magnitude = magnitude
    this.#biasB = biasB
    this.#baseWeight = factors.baseWeight
    this.#isTraining = factors.isNew
  }

  /**
   * A layer from copies of trained factors A (r, k) and B (d, r), without a base weight, in evaluation mode. If the
   * config has no rank, the rank of A and B is used. Here the rank may be above min(d, k), but for `pissa` and `olora`.
   *
   * @throws ShapeError when the factors disagree with each other or with the config's rank; ConfigError when a
   *   magnitude or a bias is there and the config has none, or the other way round.
   */
  static fromFactors(
    weightA: MatrixLike,
    weightB: MatrixLike,
    config: LoraConfigInput = {},
    name = '',
    vectors: LayerVectors = {},
  ): LoraLayer {
    const a = toMatrix(weightA, where(name, 'weightA'))
    const b = toMatrix(weightB, where(name, 'weightB'))
    const own = configForFactors(configForLayer(resolveConfigOf(config, a.shape[0]), name), { weightA: a, weightB: b })
    checkShape(a, own.rank, a.shape[1], where(name, 'weightA'))
    checkShape(b, b.shape[0], own.rank, where(name, 'weightB'))
    return new LoraLayer(new Factors(copyAs(a, a.data), copyAs(b, a.data), false, vectors), own, name)
  }

  /**
   * A new layer for a weight (d, k) that stays where it is: as the constructor makes it, in f32, without a base weight.
   *
   * @throws ConfigError when the config is not valid, or its rank is above min(d, k); UnsupportedError for DoRA, whose
   *   magnitude starts from the weight's values, for a bias of B, and for an `init` that starts from the weight's
   *   values.
   */
  static ofShape(shape: readonly [d: number, k: number], config: LoraConfigInput = {}, name = ''): LoraLayer {
    const own = configForLayer(resolveConfig(config), name)
    return new LoraLayer(factorsOfShape(shape, own, name, new Float32Array()), own, name)
  }

  /** Rows of the weight: how many features come out. */
  get d(): number {
    return this.#weightB.shape[0]
  }

  /** Columns of the weight: how many features go in. */
  get k(): number {
    return this.#weightA.shape[1]
  }

  /** Shape of the weight: (d, k). */
  get shape(): readonly [d: number, k: number] {
    return [this.d, this.k]
  }

  get tensors(): FactorTensors<Tensor<FloatArray>> {
    return factorTensors(this.#weightA, this.#weightB, this.#magnitude, this.#biasB)
  }

  /** s·B·A is in the base weight. */
  get merged(): boolean {
    return this.#unmerged !== undefined
  }

  /** Dropout is on, where the config has it. */
  get isTraining(): boolean {
    return this.#isTraining
  }

  /** A (r, k), the layer's own: its data may be edited in place. Assignment copies; StateError while merged. */
  get weightA(): Matrix {
    return this.#weightA
  }

  set weightA(value: MatrixLike) {
    this.#weightA = this.#assigned('weightA', value, this.rank, this.k, this.#weightA.data)
  }

  /** B (d, r); as weightA. */
  get weightB(): Matrix {
    return this.#weightB
  }

  set weightB(value: MatrixLike) {
    this.#weightB = this.#assigned('weightB', value, this.d, this.rank, this.#weightB.data)
  }

  /** DoRA's m (d), the layer's own: its values may be edited in place. */
  get magnitude(): FloatArray | undefined {
    return this.#magnitude
  }

  /** The bias of B (d), the layer's own; s·biasB is added to the output. */
  get biasB(): FloatArray | undefined {
    return this.#biasB
  }

  /**
   * The base weight W (d, k). Some inits change it. While the layer is merged, it contains s·B·A. Undefined if the
   * layer has no base weight. If you assign a matrix, it is copied without changes.
   */
  get baseWeight(): Matrix | undefined {
    return this.#baseWeight
  }

  set baseWeight(value: MatrixLike) {
    const base = this.#assigned('baseWeight', value, this.d, this.k)
    this.#baseWeight = base
    this.#weightA = copyAs(this.#weightA, base.data)
    this.#weightB = copyAs(this.#weightB, base.data)
    if (this.#magnitude !== undefined) this.#magnitude = copyVector(this.#magnitude, base.data)
    if (this.#biasB !== undefined) this.#biasB = copyVector(this.#biasB, base.data)
  }

  /**
   * Gives a layer that was read from a file its weight W (d, k), copied; the factors take its precision. If the layer's
   * `init` subtracted s·B₀·A₀ from W when training began, this does so again, as PEFT does.
   *
   * @throws ShapeError when it is not (d, k), StateError while merged, UnsupportedError when the weight alone does not
   *   tell what was taken from it (pissa-niter-N, lora-ga, corda), ConfigError when the rank of an init that takes from
   *   it is above min(d, k).
   */
  attachBase(baseWeight: MatrixLike): this {
    const matrix = toMatrix(baseWeight, this.#where('baseWeight'))
    checkShape(matrix, this.d, this.k, this.#where('baseWeight'))
    this.baseWeight = startingBase(matrix, this.config, this.name)
    return this
  }

  /** Turns dropout on, where the config has it. */
  train(): this {
    this.#isTraining = true
    return this
  }

  /** Turns dropout off. */
  eval(): this {
    this.#isTraining = false
    return this
  }

  /** s·B·A (d, k), a new matrix. */
  delta(): Matrix {
    return product(this.#weightB, this.#weightA, { scale: this.scaling })
  }

  /**
   * W + s·B·A (d, k), with DoRA's magnitude m ⊙ (W + s·B·A) / ‖W + s·B·A‖, a new matrix. While merged: a copy of the
   * base weight, which holds the delta.
   *
   * @throws StateError without a base weight
   */
  effectiveWeight(): Matrix {
    const base = this.#needBase('effectiveWeight')
    return this.merged ? copyAs(base, base.data) : this.adapted(base)
  }

  /** @internal As effectiveWeight, from a weight (d, k) that the layer does not keep. */
  adapted(weight: Matrix): Matrix {
    const sum = this.#sum(weight)
    return this.#magnitude === undefined ? sum : scale(sum, 'rows', magnitudeScales(this.#magnitude, sum))
  }

  /** s·biasB (d), what merging adds to the base's bias; undefined for a layer without one. */
  biasDelta(): Float64Array | undefined {
    return this.#biasB && Float64Array.from(this.#biasB, (value) => this.scaling * value)
  }

  /**
   * x (n, k) → y (n, d). In training mode, dropout is applied to the input of A, unless the layer is merged. A bias of
   * B is added, merged or not: the layer has no bias of the base to merge it into.
   *
   * @throws ShapeError when the input has other than k columns, StateError without a base weight.
   */
  forward(input: MatrixLike): Matrix {
    const base = this.#needBase('forward')
    const x = copyAs(toMatrix(input, this.#where('input')), base.data)
    checkShape(x, x.shape[0], this.k, this.#where('input'))
    this.#tape = undefined
    if (this.merged) {
      const output = product(x, base, { transposeB: true }) // (n, k) @ (k, d) → (n, d)
      addBias(output, this.#biasB, this.scaling)
      return output
    }
    const isDropping = this.#isTraining && this.config.dropout > 0
    const dropped = isDropping ? copyAs(x, x.data) : undefined
    const keep = dropped && dropFrom(dropped, this.config.dropout, this.#random)
    const dora = this.#magnitude && { magnitude: this.#magnitude, norms: rowNorms(this.#sum(base)) }
    const { output, tape } = forwardPass(this.#passWeights(base), { base: x, branch: dropped ?? x, dropped }, dora)
    this.#tape = { ...tape, keep }
    return output
  }

  /**
   * Gradients for the last forward, with its dropout mask, from the gradient of its output (n, d). Do not change the
   * factors between the two calls. The norms of DoRA count as constants (Liu et al. 2024, section 4.3), as in PEFT.
   *
   * @throws StateError before a forward and while merged, ShapeError when gradOutput is not (n, d).
   */
  backward(gradOutput: MatrixLike): LayerGradients {
    const tape = this.#tape
    if (tape === undefined) throw noForward(this.#where('backward'), this.merged)
    const base = this.#needBase('backward')
    const dy = inPrecisionOf(base.data, toMatrix(gradOutput, this.#where('gradOutput')))
    checkShape(dy, tape.hidden.shape[0], this.d, this.#where('gradOutput'))
    const { weightA, weightB, magnitude, biasB, ...inputs } = backwardPass(this.#passWeights(base), tape, dy)
    for (const gradient of [inputs.branch, inputs.dropped]) {
      if (gradient !== undefined) addKept(inputs.base, gradient, this.config.dropout, tape.keep)
    }
    return { weightA, weightB, input: inputs.base, ...(magnitude && { magnitude }), ...(biasB && { biasB }) }
  }

  /**
   * Adds s·B·A to the base weight.
   *
   * @throws StateError when merged already or without a base weight, NumericError when the result is not finite,
   *   UnsupportedError for an activated LoRA.
   */
  merge(): void {
    requireAlwaysOn(this, 'merging')
    const base = this.#needBase('merge')
    if (this.merged) throw new StateError({ where: this.#where('merge'), what: 'it is merged already' })
    const result = this.effectiveWeight()
    if (!isAllFinite(result.data)) {
      throw new NumericError({ where: this.#where('merge'), what: 'W + s·B·A is not finite; nothing was changed' })
    }
    // The old matrix is kept, not subtracted from later: only so can unmerge be exact.
    this.#unmerged = base
    this.#baseWeight = result
    this.#tape = undefined
  }

  /**
   * Restores the base weight bit for bit, even if A or B changed after the merge.
   *
   * @throws StateError when not merged.
   */
  unmerge(): void {
    if (this.#unmerged === undefined) throw new StateError({ where: this.#where('unmerge'), what: 'not merged' })
    this.#baseWeight = this.#unmerged
    this.#unmerged = undefined
  }

  /** Frees the base weight and what forward kept. The factors stay: the layer can be saved, or get a base again. */
  dispose(): void {
    this.#baseWeight = undefined
    this.#unmerged = undefined
    this.#tape = undefined
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** ‖s·B·A‖, Frobenius, without forming B·A. */
  normDelta(): number {
    return this.scaling * normOfProduct(this.#weightB, this.#weightA)
  }

  #sum(base: Matrix): Matrix {
    const [weightA, weightB] = [this.#weightA, this.#weightB].map((factor) => inPrecisionOf(base.data, factor))
    return addDelta(copyAs(base, base.data), { weightA, weightB }, this.scaling)
  }

  #passWeights(base: Matrix): PassWeights {
    const { weightA, weightB, scaling, biasB } = this
    return { base, weightA, weightB, scaling, biasB }
  }

  #needBase(member: string): Matrix {
    if (this.#baseWeight !== undefined) return this.#baseWeight
    throw noBase(this.#where(member), 'attachBase(W)')
  }

  #assigned(field: string, value: MatrixLike, rows: number, columns: number, like?: FloatArray): Matrix {
    if (this.merged) {
      const what = 'cannot be replaced while merged'
      throw new StateError({ where: this.#where(field), what, hint: 'Call unmerge() first' })
    }
    const matrix = toMatrix(value, this.#where(field))
    checkShape(matrix, rows, columns, this.#where(field))
    this.#tape = undefined
    return copyAs(matrix, like ?? matrix.data)
  }

  #where(member: string): string {
    return where(this.name, member)
  }
}
