// An adapted parameter (PEFT's target_parameters). Each expert is a linear layer with separate factors. PEFT stacks
// them as A (E·r, k), expert after expert, and B (d, r·E), where column j·E + e is column j of expert e.

import { ShapeError } from '../../core/base/errors.js'
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
} from '../../core/base/tensor.js'
import { copyAs, rowsOf, stacked } from '../../core/linalg/product.js'
import { configForLayer, type LoraConfig, type LoraConfigInput, resolveConfig } from '../config.js'
import { Factors, layerVectors, where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { FactorPart, type FactorTensors, factorTensors, moduleOf } from '../part.js'

/** How the base stores a parameter: as (E, d, k), or input-major as (E, k, d). */
export interface BaseLayout {
  /** Needed only if d = k. Then the default is false, as in PEFT. */
  isInputMajor?: boolean | undefined
}

/** Returns B_e (d, r), which is the r columns e, e + E, … of B (d, r·E). */
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
 * An adapted parameter: E linear layers, y = x·(W_e + s·B_e·A_e)ᵀ with W_e (d, k), A_e (r, k) and B_e (d, r). It is
 * made from trained factors, in evaluation mode. PEFT has no dropout here.
 */
export class ExpertLora extends FactorPart {
  readonly kind = 'parameter'
  /** The parameter's full name, as in `model.layers.0.mlp.experts.gate_up_proj`. */
  readonly name: string
  /** The parameter's settings, with the rank and alpha that the config's patterns give its name. */
  readonly config: LoraConfig
  /** A (E·r, k). This is not a copy: if you edit its data, the part changes. */
  readonly weightA: Matrix
  /** B (d, r·E). Like `weightA`, it is not a copy. */
  readonly weightB: Matrix

  /**
   * @param weightA (E·r, k)
   * @param weightB (d, r·E)
   * @param name the parameter's full name, which the config's patterns are matched with
   * @throws ShapeError if the shapes of A and B do not fit together, or if the rows of A are not a multiple of the rank
   *   that the config gives this name
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

  /** E, the number of experts, at least 1. */
  get experts(): number {
    return this.weightA.shape[0] / this.rank
  }

  /** Rows of each expert's weight: the number of output features. */
  get d(): number {
    return this.weightB.shape[0]
  }

  /** Columns of each expert's weight: the number of input features. */
  get k(): number {
    return this.weightA.shape[1]
  }

  /**
   * Returns W + s·B·A for a parameter W (E, d, k) or (E, k, d), as a new tensor of the same shape. If E = 1, W can also
   * be (d, k), but not (k, d).
   *
   * @throws ShapeError for another shape
   */
  effectiveWeight({ data, shape }: Tensor<FloatArray>, { isInputMajor }: BaseLayout = {}): Tensor<FloatArray> {
    checkTensor({ data, shape }, this.#where('effectiveWeight'))
    const { experts, d, k } = this
    const layout = parameterLayout(shape, { experts, d, k }, isInputMajor)
    if (layout === undefined) {
      throw new ShapeError({
        where: this.#where('effectiveWeight'),
        what: 'wrong shape',
        expected: `${formatShape([experts, d, k])} or ${formatShape([experts, k, d])}`,
        got: formatShape(shape),
      })
    }
    const turn = (matrix: Matrix) => (layout.isInputMajor ? transpose(matrix) : matrix)
    const all: Matrix = { data, shape: layout.isInputMajor ? [experts * k, d] : [experts * d, k] }
    const adapted = Array.from({ length: experts }, (_, e) => {
      const [a, b] = expertFactors(this, e)
      return turn(LoraLayer.fromFactors(a, b, this.config).adapted(turn(rowsOf(all, e, experts))))
    })
    return { data: stacked(adapted).data, shape: [...shape] }
  }

  #where(member: string): string {
    return where(this.name, member, 'ExpertLora')
  }
}

/** Returns the A (E·r, k) and B (d, r·E) that a training starts from: each expert begins as a new layer does. */
export function newExpertFactors(
  { experts, d, k }: { experts: number; d: number; k: number },
  config: LoraConfig,
  name: string,
): { weightA: Matrix; weightB: Matrix } {
  const plain = { ...configForLayer(config, name), rankPattern: {}, alphaPattern: {} }
  const layers = Array.from({ length: experts }, (_, e) => LoraLayer.ofShape([d, k], plain, `${name}.${e}`))
  return {
    weightA: stacked(layers.map((layer) => layer.weightA)),
    weightB: besideByExpert(layers.map((layer) => layer.weightB)),
  }
}

/** Joins B_e (d, r) of all experts to B (d, r·E). Column p·E + e is column p of expert e. */
export function besideByExpert(all: readonly Matrix[]): Matrix {
  const [d, rank] = all[0].shape
  const result = zeros(d, rank * all.length, all[0].data)
  all.forEach(({ data }, e) => {
    for (let i = 0; i < data.length; i++) result.data[i * all.length + e] = data[i]
  })
  return result
}

/**
 * Returns factors for all experts at once, as if they were one layer: A (r, E·y) and B (E·x, r) for a weight (E, x, y).
 * If it is input-major, A and B change places. `rows`: B's rows in the order of the weight.
 */
export function joinedFactors(part: ExpertLora, rows: readonly number[], isInputMajor: boolean) {
  const pairs = Array.from({ length: part.experts }, (_, expert) => {
    const [a, b] = expertFactors(part, expert)
    const ofInput = transpose(a)
    const ofOutput = chosenRows(b, rows)
    return isInputMajor ? [ofOutput, ofInput] : [ofInput, ofOutput]
  })
  const [right, weightB] = [0, 1].map((side) => stacked(pairs.map((pair) => pair[side])))
  return { weightA: transpose(right), weightB }
}

export function chosenRows({ data, shape: [, columns] }: Matrix, rows: readonly number[]): Matrix {
  const chosen = data.slice(0, rows.length * columns)
  for (const [i, row] of rows.entries()) chosen.set(data.subarray(row * columns, (row + 1) * columns), i * columns)
  return { data: chosen, shape: [rows.length, columns] }
}

/** Returns A_e (r, k) and B_e (d, r). */
export function expertFactors({ weightA, weightB, experts }: ExpertLora, expert: number): [a: Matrix, b: Matrix] {
  return [rowsOf(weightA, expert, experts), expertColumns(weightB, expert, experts)]
}

/**
 * Finds out how a parameter holds E matrices (d, k), or returns undefined if it does not. `isInputMajor` decides if d =
 * k.
 */
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
