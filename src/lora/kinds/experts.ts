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
  transpose,
  zeros,
} from '../../base/tensor.js'
import { copyAs, rowsOf, stacked } from '../../linalg/product.js'
import { configForLayer, type LoraConfig, type LoraConfigInput, resolveConfig } from '../config.js'
import { Factors, layerVectors, where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { FactorPart, type FactorTensors, factorTensors, moduleOf } from '../part.js'

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
  /** A (E·r, k), the parameter's own: its data may be edited in place. */
  readonly weightA: Matrix
  /** B (d, r·E), the parameter's own. */
  readonly weightB: Matrix

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
    this.weightA = copyAs(a, a.data)
    this.weightB = copyAs(b, a.data)
    layerVectors(new Factors(a, b, false), this.config, name)
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
    return this.weightA.shape[0] / this.rank
  }

  /** Rows of each expert's weight: how many features come out. */
  get d(): number {
    return this.weightB.shape[0]
  }

  /** Columns of each expert's weight: how many features go in. */
  get k(): number {
    return this.weightA.shape[1]
  }

  /**
   * W + s·B·A of a parameter W, in its shape, a new tensor. The shape is (E, d, k) or (E, k, d); for E = 1 also (d, k).
   *
   * @throws ShapeError when it is none of these
   */
  effectiveWeight({ data, shape }: Tensor<FloatArray>, { isInputMajor }: BaseLayout = {}): Tensor<FloatArray> {
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
    const adapted = Array.from({ length: experts }, (_, e) => {
      const [a, b] = [rowsOf(this.weightA, e, experts), expertColumns(this.weightB, e, experts)]
      return turn(LoraLayer.fromFactors(a, b, this.config).adapted(turn(rowsOf(all, e, experts))))
    })
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
