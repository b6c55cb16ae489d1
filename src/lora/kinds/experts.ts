// An adapted parameter (PEFT's target_parameters). Each expert is a linear layer with factors of its own; PEFT keeps
// them as A (E·r, k), expert after expert, and B (d, r·E), where the experts of one rank are neighbors.

import type { FloatDtype } from '../../base/dtype.js'
import { ShapeError } from '../../base/errors.js'
import {
  checkShape,
  checkTensor,
  type FloatArray,
  formatShape,
  type Matrix,
  type MatrixLike,
  type Tensor,
  toMatrix,
  zeros,
} from '../../base/tensor.js'
import { norm, rowsOf, transpose } from '../../linalg/product.js'
import { configForLayer, type LoraConfig, type LoraConfigInput, resolveConfig, scalingOf } from '../config.js'
import { noBase, where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { type FactorTensors, factorTensors, mergeOrNone, moduleOf, Part } from '../part.js'

/** The values of a parameter, row-major. The shape is (E, d, k), (E, k, d), or (d, k) if E = 1. */
export interface ParameterValues {
  /** As many values as the shape has elements. */
  readonly data: FloatArray
  readonly shape: readonly number[]
}

/** How a parameter (E, ·, ·) is stored: (E, d, k), or input-major as (E, k, d). */
export interface BaseLayout {
  /** Needed only if d = k. Then the default is false, as in PEFT. */
  isInputMajor?: boolean | undefined
}

/** B_e of B (d, r·E): the columns e, e + E, …, of which there are r. */
export function expertColumns(weightB: Matrix, expert: number, experts: number): Matrix {
  const [d, columns] = weightB.shape
  const rank = columns / experts
  const result = zeros(d, rank, weightB.data)
  for (let i = 0, at = 0; i < d; i++) {
    for (let j = 0; j < rank; j++, at++) result.data[at] = weightB.data[i * columns + j * experts + expert]
  }
  return result
}

/**
 * An adapted parameter: E linear layers, y = x·(W_e + s·B_e·A_e)ᵀ with W_e (d, k), A_e (r, k) and B_e (d, r). Made from
 * trained factors, in evaluation mode; PEFT has no dropout here.
 */
export class ExpertLora extends Part {
  readonly kind = 'parameter'
  /** The parameter's full name, as in `model.layers.0.mlp.experts.gate_up_proj`. */
  readonly name: string
  /** The parameter's settings: rank and alpha are those that the config's patterns give its name. */
  readonly config: LoraConfig
  readonly #experts: readonly LoraLayer[]
  #base: { shape: readonly number[]; isInputMajor: boolean } | undefined

  /**
   * @param weightA (E·r, k)
   * @param weightB (d, r·E)
   * @param name the parameter's, which the config's patterns see whole
   * @throws ShapeError when the shapes of A and B do not fit, or when their ranks are not a multiple of the config's
   *   rank for this name
   */
  constructor(weightA: MatrixLike, weightB: MatrixLike, config: LoraConfigInput = {}, name = '') {
    super()
    this.name = name
    const a = toMatrix(weightA, this.#where('weightA'))
    const b = toMatrix(weightB, this.#where('weightB'))
    this.config = configForLayer(resolveConfig(config), name)
    const { rank } = this.config
    const [ranks] = a.shape
    if (ranks === 0 || ranks % rank !== 0) {
      throw new ShapeError({
        where: this.#where('weightA'),
        what: 'no number of experts gives so many rows',
        expected: `a multiple of the rank, ${rank}`,
        got: formatShape(a.shape),
      })
    }
    checkShape(b, b.shape[0], ranks, this.#where('weightB'))
    const experts = ranks / rank
    this.#experts = Array.from({ length: experts }, (_, e) => {
      return LoraLayer.fromFactors(rowsOf(a, e, experts), expertColumns(b, e, experts), this.config, `${name}[${e}]`)
    })
  }

  /** The module that owns the parameter. */
  override get module(): string {
    return moduleOf(this.name)
  }

  /** The parameter's own name, as in `gate_up_proj`. */
  get parameter(): string {
    return this.name.slice(this.name.lastIndexOf('.') + 1)
  }

  /** Shape (E, d, k). The base can also store it as (E, k, d). */
  get shape(): readonly [experts: number, d: number, k: number] {
    return [this.experts, this.d, this.k]
  }

  get tensors(): FactorTensors<Tensor<FloatArray>> {
    return factorTensors(this.weightA, this.weightB, undefined)
  }

  /** E, at least 1. */
  get experts(): number {
    return this.#experts.length
  }

  /** Rows of each expert's weight: how many features come out. */
  get d(): number {
    return this.#experts[0].d
  }

  /** Columns of each expert's weight: how many features go in. */
  get k(): number {
    return this.#experts[0].k
  }

  /** r of each expert. */
  get rank(): number {
    return this.config.rank
  }

  /** s, by which B·A is multiplied. */
  get scaling(): number {
    return scalingOf(this.config)
  }

  /** The type that the parameter is saved in, unless saving names another: that of the file it came from, else fp32. */
  get dtype(): FloatDtype {
    return this.#experts[0].dtype
  }

  set dtype(value: FloatDtype) {
    for (const expert of this.#experts) expert.dtype = value
  }

  /** The change is in the parameter. */
  get merged(): boolean {
    return this.#experts[0].merged
  }

  /** A (E·r, k), a new matrix. */
  get weightA(): Matrix {
    const { rank, k } = this
    const result = zeros(this.experts * rank, k, this.#experts[0].weightA.data)
    this.#experts.forEach(({ weightA }, e) => {
      result.data.set(weightA.data, e * rank * k)
    })
    return result
  }

  /** B (d, r·E), a new matrix. */
  get weightB(): Matrix {
    const { rank, d, experts } = this
    const result = zeros(d, rank * experts, this.#experts[0].weightB.data)
    this.#experts.forEach(({ weightB }, e) => {
      for (let at = 0; at < d * rank; at++) result.data[at * experts + e] = weightB.data[at]
    })
    return result
  }

  /**
   * The linear layer of one expert, the parameter's own.
   *
   * @throws ShapeError when there is no such expert
   */
  expert(index: number): LoraLayer {
    const layer = this.#experts[index]
    if (layer !== undefined) return layer
    throw new ShapeError({
      where: this.name || 'ExpertLora',
      what: 'no such expert',
      expected: `0 to ${this.experts - 1}`,
      got: String(index),
    })
  }

  /**
   * Attaches a copy of the base parameter. Its shape is (E, d, k) or (E, k, d); for E = 1 also (d, k).
   *
   * @throws ShapeError when it is none of these, StateError while merged
   */
  attachBase(parameter: ParameterValues, { isInputMajor }: BaseLayout = {}): this {
    checkTensor(parameter, this.#where('baseWeight'))
    const { experts, d, k } = this
    const { data, shape } = parameter
    const own = parameterLayout(shape, { experts, d, k }, isInputMajor)
    if (own === undefined) {
      throw new ShapeError({
        where: this.#where('baseWeight'),
        what: 'wrong shape',
        expected: `${formatShape([experts, d, k])} or ${formatShape([experts, k, d])}`,
        got: formatShape(shape),
      })
    }
    const all: Matrix = { data, shape: own.isInputMajor ? [experts * k, d] : [experts * d, k] }
    this.#experts.forEach((expert, e) => {
      const matrix = rowsOf(all, e, experts)
      expert.attachBase(own.isInputMajor ? transpose(matrix) : matrix)
    })
    this.#base = { shape: [...shape], isInputMajor: own.isInputMajor }
    return this
  }

  /** The parameter as it was attached; with s·B·A in it while merged; undefined while none is attached. A copy. */
  get baseWeight(): ParameterValues | undefined {
    const weights = this.#experts.flatMap(({ baseWeight }) => baseWeight ?? [])
    return weights.length < this.experts ? undefined : this.#stack(weights)
  }

  /** s·B_e·A_e of all experts, in the layout of the base, and as (E, d, k) while none is attached. A new tensor. */
  delta(): ParameterValues {
    return this.#stack(this.#experts.map((expert) => expert.delta()))
  }

  /** W + s·B·A in the shape of the base, a new tensor. Throws StateError without a base. */
  effectiveWeight(): ParameterValues {
    if (this.#base === undefined) throw noBase(this.#where('effectiveWeight'), 'attachBase(W)')
    return this.#stack(this.#experts.map((expert) => expert.effectiveWeight()))
  }

  /** (n, k) → (n, d) through one expert. Throws as `expert` and {@link LoraLayer.forward} do. */
  forward(expert: number, input: MatrixLike): Matrix {
    return this.expert(expert).forward(input)
  }

  /**
   * Adds s·B·A to the base. If it fails for one expert, no expert is changed. Throws as {@link LoraLayer.merge} does.
   */
  merge(): void {
    mergeOrNone(this.#experts)
  }

  /** Restores the base bit for bit. Throws StateError when it is not merged. */
  unmerge(): void {
    for (const expert of this.#experts) expert.unmerge()
  }

  /** Like {@link LoraLayer.dispose}. */
  dispose(): void {
    for (const expert of this.#experts) expert.dispose()
    this.#base = undefined
  }

  /** ‖A‖ over all experts, Frobenius. */
  normA(): number {
    return norm({ data: Float64Array.from(this.#experts, (expert) => expert.normA()) })
  }

  /** ‖B‖ over all experts, Frobenius. */
  normB(): number {
    return norm({ data: Float64Array.from(this.#experts, (expert) => expert.normB()) })
  }

  /** ‖s·B·A‖ over all experts, Frobenius, without forming B·A. */
  normDelta(): number {
    return norm({ data: Float64Array.from(this.#experts, (expert) => expert.normDelta()) })
  }

  #stack(matrices: readonly Matrix[]): ParameterValues {
    const { experts, d, k } = this
    const { shape, isInputMajor } = this.#base ?? { shape: [experts, d, k], isInputMajor: false }
    const { data } = zeros(experts, d * k, matrices[0].data)
    matrices.forEach((matrix, e) => {
      data.set((isInputMajor ? transpose(matrix) : matrix).data, e * d * k)
    })
    return { data, shape: [...shape] }
  }

  #where(member: string): string {
    return where(this.name, member, 'ExpertLora')
  }
}

/** Undefined when a parameter of this shape cannot hold E matrices (d, k). `isInputMajor` decides where d = k. */
export function parameterLayout(
  shape: readonly number[],
  { experts, d, k }: { experts: number; d: number; k: number },
  isInputMajor = false,
): { isInputMajor: boolean } | undefined {
  const is = (...dims: number[]) => dims.length === shape.length && dims.every((dim, i) => dim === shape[i])
  if (experts === 1 && is(d, k)) return { isInputMajor: false }
  if (is(experts, d, k) && !(d === k && isInputMajor)) return { isInputMajor: false }
  return is(experts, k, d) ? { isInputMajor: true } : undefined
}
