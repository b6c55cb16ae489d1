// An adapted parameter (PEFT's target_parameters). Each expert is a linear layer with factors of its own; PEFT keeps
// them as A (E·r, k), expert after expert, and B (d, r·E), where the experts of one rank are neighbors.

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
import { rowsOf, stacked, transpose } from '../../linalg/product.js'
import { configForLayer, type LoraConfig, type LoraConfigInput, resolveConfig } from '../config.js'
import { where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { FactorPart, type FactorTensors, factorTensors, moduleOf } from '../part.js'

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
export class ExpertLora extends FactorPart {
  readonly kind = 'parameter'
  /** The parameter's full name, as in `model.layers.0.mlp.experts.gate_up_proj`. */
  readonly name: string
  /** The parameter's settings: rank and alpha are those that the config's patterns give its name. */
  readonly config: LoraConfig
  readonly #experts: readonly LoraLayer[]

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

  /** A (E·r, k), a new matrix. */
  get weightA(): Matrix {
    return stacked(this.#experts.map(({ weightA }) => weightA))
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
   * W + s·B·A of a parameter W, in its shape, a new tensor. The shape is (E, d, k) or (E, k, d); for E = 1 also (d, k).
   *
   * @throws ShapeError when it is none of these
   */
  effectiveWeight({ data, shape }: ParameterValues, { isInputMajor }: BaseLayout = {}): ParameterValues {
    checkTensor({ data, shape }, this.#where('effectiveWeight'))
    const { experts, d, k } = this
    const own = parameterLayout(shape, { experts, d, k }, isInputMajor)
    if (own === undefined) {
      throw new ShapeError({
        where: this.#where('effectiveWeight'),
        what: 'wrong shape',
        expected: `${formatShape([experts, d, k])} or ${formatShape([experts, k, d])}`,
        got: formatShape(shape),
      })
    }
    const turn = (matrix: Matrix) => (own.isInputMajor ? transpose(matrix) : matrix)
    const all: Matrix = { data, shape: own.isInputMajor ? [experts * k, d] : [experts * d, k] }
    const adapted = this.#experts.map((expert, e) => turn(expert.adapted(turn(rowsOf(all, e, experts)))))
    return { data: stacked(adapted).data, shape: [...shape] }
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
