// An adapted linear layer: y = x·(W + s·B·A)ᵀ with W (d, k), A (r, k), B (d, r) and s from alpha and rank (Hu et al.
// 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1). It can also have a
// magnitude for each row (DoRA, Liu et al. 2024, arXiv 2402.09353) and a bias of B (PEFT's lora_bias).

import { NumericError, StateError } from '../core/base/errors.js'
import { Random } from '../core/base/random.js'
import {
  checkShape,
  type FloatArray,
  isAllFinite,
  type Matrix,
  type MatrixLike,
  type Tensor,
  toMatrix,
} from '../core/base/tensor.js'
import { copyAs, inPrecisionOf, normOfProduct, product } from '../core/linalg/product.js'
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
  noForward,
  startingBase,
  where,
} from './factors.js'
import { FactorPart, type FactorTensors, factorTensors } from './part.js'
import { addBias, backwardPass, forwardPass, type LayerGradients, type PassWeights, type Tape } from './passes.js'

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
   * The layer's settings, with the rank and alpha that the config's patterns give its name. The rank is lowered if it
   * is more than its init can use.
   */
  readonly config: LoraConfig
  readonly #random: Random
  #weightA: Matrix
  #weightB: Matrix
  #magnitude: FloatArray | undefined
  #biasB: FloatArray | undefined
  #baseWeight: Matrix | undefined
  /** The base weight from before the merge. Set only while merged. */
  #unmerged: Matrix | undefined
  /** `keep` is 0 for each dropped element of the input. It is undefined without dropout. */
  #tape: (Tape & { keep: Uint8Array | undefined }) | undefined
  #isTraining: boolean

  /**
   * Makes a new layer over a copy of `baseWeight` W (d, k), in training mode. The config's `init` says how A and B
   * start, and random values depend on the seed and the name. With DoRA, the magnitude starts as ‖W‖. Some inits
   * subtract s·B·A from the copy. At the start the effective weight equals W, except with init `random`.
   *
   * @throws ConfigError if the config is not valid, or the layer's rank is above min(d, k); ShapeError if `baseWeight`
   *   is not a matrix
   */
  constructor(baseWeight: MatrixLike, config?: LoraConfigInput, name?: string)
  /** @internal */
  constructor(factors: Factors, config?: LoraConfigInput, name?: string)
  constructor(source: MatrixLike | Factors, config: LoraConfigInput = {}, name = '') {
    super()
    this.name = name
    const layerConfig = configForLayer(resolveConfig(config), name)
    const factors = source instanceof Factors ? source : factorsOver(source, layerConfig, name)
    this.config = configForFactors(layerConfig, factors)
    this.#random = new Random(layerConfig.seed, `dropout/${name}`)
    this.#weightA = factors.weightA
    this.#weightB = factors.weightB
    const { magnitude, biasB } = layerVectors(factors, this.config, name)
    this.#magnitude = magnitude
    this.#biasB = biasB
    this.#baseWeight = factors.baseWeight
    this.#isTraining = factors.isNew
  }

  /**
   * Makes a layer from copies of trained factors A (r, k) and B (d, r), without a base weight, in evaluation mode. If
   * the config has no rank, it takes that of A and B. Here the rank may be above min(d, k), except with `pissa` and
   * `olora`.
   *
   * @throws ShapeError if the factors disagree with each other or with the config's rank; ConfigError if a magnitude or
   *   bias is given and the config has none, or the other way round.
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
    const layerConfig = configForFactors(configForLayer(resolveConfigOf(config, a.shape[0]), name), {
      weightA: a,
      weightB: b,
    })
    checkShape(a, layerConfig.rank, a.shape[1], where(name, 'weightA'))
    checkShape(b, b.shape[0], layerConfig.rank, where(name, 'weightB'))
    return new LoraLayer(new Factors(copyAs(a, a.data), copyAs(b, a.data), false, vectors), layerConfig, name)
  }

  /**
   * Makes a new layer for a weight (d, k) that is not loaded. It starts as the constructor would start it, in f32, but
   * has no base weight.
   *
   * @throws ConfigError if the config is not valid, or its rank is above min(d, k); UnsupportedError for DoRA and for
   *   an `init` that start from the weight's values, and for a bias of B.
   */
  static ofShape(shape: readonly [d: number, k: number], config: LoraConfigInput = {}, name = ''): LoraLayer {
    const layerConfig = configForLayer(resolveConfig(config), name)
    return new LoraLayer(factorsOfShape(shape, layerConfig, name), layerConfig, name)
  }

  /** Rows of the weight: the number of output features. */
  get d(): number {
    return this.#weightB.shape[0]
  }

  /** Columns of the weight: the number of input features. */
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

  /** True if s·B·A has been added to the base weight. */
  get merged(): boolean {
    return this.#unmerged !== undefined
  }

  /** True if the layer is in training mode, in which the config's dropout is applied. */
  get isTraining(): boolean {
    return this.#isTraining
  }

  /**
   * A (r, k). This is not a copy: if you edit its data, the layer changes. If you assign a matrix, it is copied. Throws
   * StateError if you assign while merged.
   */
  get weightA(): Matrix {
    return this.#weightA
  }

  set weightA(value: MatrixLike) {
    this.#weightA = this.#assigned('weightA', value, this.rank, this.k, this.#weightA.data)
  }

  /** B (d, r). The same holds as for `weightA`. */
  get weightB(): Matrix {
    return this.#weightB
  }

  set weightB(value: MatrixLike) {
    this.#weightB = this.#assigned('weightB', value, this.d, this.rank, this.#weightB.data)
  }

  /** DoRA's magnitude m (d). This is not a copy: if you edit its values, the layer changes. */
  get magnitude(): FloatArray | undefined {
    return this.#magnitude
  }

  /** The bias of B (d), not a copy. s·biasB is added to the output. */
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
   * Gives a layer that was read from a file a copy of its weight W (d, k). The factors take its precision. If the
   * layer's `init` subtracted s·B₀·A₀ from W when training began, this subtracts it again, as PEFT does.
   *
   * @throws ShapeError if it is not (d, k); StateError while merged; UnsupportedError if B₀·A₀ cannot be computed from
   *   the weight alone (pissa-niter-N, lora-ga, corda); ConfigError if the rank is above min(d, k) for an init that
   *   subtracts.
   */
  attachBase(baseWeight: MatrixLike): this {
    const matrix = toMatrix(baseWeight, this.#where('baseWeight'))
    checkShape(matrix, this.d, this.k, this.#where('baseWeight'))
    this.baseWeight = startingBase(matrix, this.config, this.name)
    return this
  }

  /** Turns on training mode, in which the config's dropout is applied. */
  train(): this {
    this.#isTraining = true
    return this
  }

  /** Turns dropout off. */
  eval(): this {
    this.#isTraining = false
    return this
  }

  /** Returns s·B·A (d, k) as a new matrix. */
  delta(): Matrix {
    return product(this.#weightB, this.#weightA, { scale: this.scaling })
  }

  /**
   * Returns W + s·B·A (d, k), or m ⊙ (W + s·B·A) / ‖W + s·B·A‖ with DoRA, as a new matrix. While the layer is merged,
   * this is a copy of the base weight, which already contains the change.
   *
   * @throws StateError without a base weight
   */
  effectiveWeight(): Matrix {
    const base = this.#needBase('effectiveWeight')
    return this.merged ? copyAs(base, base.data) : this.adapted(base)
  }

  /** @internal Does the same as effectiveWeight for a weight (d, k) that the layer does not keep. */
  adapted(weight: Matrix): Matrix {
    const sum = this.#sum(weight)
    return this.#magnitude === undefined ? sum : scale(sum, 'rows', magnitudeScales(this.#magnitude, sum))
  }

  /** Returns s·biasB (d), which merging adds to the base's bias, or undefined if B has no bias. */
  biasDelta(): Float64Array | undefined {
    return this.#biasB && Float64Array.from(this.#biasB, (value) => this.scaling * value)
  }

  /**
   * Computes y (n, d) from x (n, k). In training mode, dropout is applied to the input of A, unless the layer is
   * merged. The bias of B is always added, even if the layer is merged, because the layer has no base bias to merge it
   * into.
   *
   * @throws ShapeError if the input does not have k columns, StateError without a base weight.
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
   * Computes the gradients of the last forward, with its dropout mask, from the gradient of its output (n, d). Do not
   * change the factors between the two calls. The norms of DoRA count as constants (Liu et al. 2024, section 4.3), as
   * in PEFT.
   *
   * @throws StateError before the first forward and while merged, ShapeError if gradOutput is not (n, d).
   */
  backward(gradOutput: MatrixLike): LayerGradients {
    const tape = this.#tape
    if (tape === undefined) throw noForward(this.#where('backward'), this.merged)
    const base = this.#needBase('backward')
    const dy = inPrecisionOf(base.data, toMatrix(gradOutput, this.#where('gradOutput')))
    checkShape(dy, tape.hidden.shape[0], this.d, this.#where('gradOutput'))
    const { weightA, weightB, magnitude, biasB, ...inputs } = backwardPass(this.#passWeights(base), tape, dy)
    for (const gradient of [inputs.branch, inputs.dropped]) {
      if (gradient && tape.keep) addKept(inputs.base, gradient, this.config.dropout, tape.keep)
    }
    return { weightA, weightB, input: inputs.base, ...(magnitude && { magnitude }), ...(biasB && { biasB }) }
  }

  /**
   * Adds s·B·A to the base weight.
   *
   * @throws StateError if it is merged already or has no base weight, NumericError if the result is not finite.
   */
  merge(): void {
    const base = this.#needBase('merge')
    if (this.merged) throw new StateError({ where: this.#where('merge'), what: 'it is merged already' })
    const result = this.effectiveWeight()
    if (!isAllFinite(result.data)) {
      throw new NumericError({ where: this.#where('merge'), what: 'W + s·B·A is not finite; nothing was changed' })
    }
    // Keep the old matrix. Subtracting s·B·A later would not restore it exactly.
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

  /** Frees the base weight and what forward kept. The factors stay, so the layer can be saved or get a base again. */
  dispose(): void {
    this.#baseWeight = undefined
    this.#unmerged = undefined
    this.#tape = undefined
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** Returns the Frobenius norm ‖s·B·A‖ without computing B·A. */
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
    const hint = 'Give it one with attachBase(W)'
    throw new StateError({ where: this.#where(member), what: 'the layer has no base weight', hint })
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
