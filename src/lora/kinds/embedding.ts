// An adapted embedding: rows of E + s·(B·A)ᵀ with E (V, D), A (r, V), B (D, r). Its transpose is a linear layer's
// weight, which does the work here, so that a DoRA magnitude has one number for each of the D features, as in PEFT.

import { ShapeError } from '../../base/errors.js'
import {
  checkShape,
  type FloatArray,
  formatShape,
  type Matrix,
  type MatrixLike,
  type Tensor,
  toMatrix,
  zeros,
} from '../../base/tensor.js'
import { addScaled, inPrecisionOf, transpose } from '../../linalg/product.js'
import type { LoraConfigInput } from '../config.js'
import { rowNorms } from '../dora.js'
import { type LayerVectors, noBase, noForward, where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { type FactorTensors, factorTensors } from '../part.js'
import { addChange, type ChangeTape, type ChangeWeights, changeGradients } from '../passes.js'
import { LinearBacked } from './linear-backed.js'

/** Result of `backward`. */
export interface EmbeddingGradients {
  /** (r, V) */
  weightA: Matrix
  /** (D, r) */
  weightB: Matrix
  /** (D), of a layer with a magnitude. */
  magnitude?: FloatArray
}

/**
 * An adapted embedding: rows of E + s·(B·A)ᵀ with E (V, D), A (r, V) and B (D, r). Made from trained factors, in
 * evaluation mode. Dropout, which PEFT does not apply to embeddings, has no effect.
 */
export class EmbeddingLora extends LinearBacked {
  readonly kind = 'embedding'
  /** Values of the last forward that backward needs. */
  #tape: (ChangeTape & { tokens: readonly number[] }) | undefined

  /**
   * @param weightA (r, V), V rows of the embedding
   * @param weightB (D, r), D features
   * @throws as {@link LoraLayer.fromFactors} does
   */
  constructor(
    weightA: MatrixLike,
    weightB: MatrixLike,
    config: LoraConfigInput = {},
    name = '',
    vectors: Pick<LayerVectors, 'magnitude'> = {},
  ) {
    super(LoraLayer.fromFactors(weightA, weightB, config, name, vectors))
  }

  /** Shape of the embedding: (V, D). */
  get shape(): readonly [vocabulary: number, features: number] {
    return [this.vocabulary, this.features]
  }

  get tensors(): FactorTensors<Tensor<FloatArray>> {
    return factorTensors(this.weightA, this.weightB, this.magnitude)
  }

  /** @internal The same factors as a linear layer of one token: V in, D out. */
  get product(): LoraLayer {
    return this.linear
  }

  /** V: rows of the embedding. */
  get vocabulary(): number {
    return this.linear.k
  }

  /** D: features of a row. */
  get features(): number {
    return this.linear.d
  }

  /** A (r, V), the layer's own: its data may be edited in place. */
  get weightA(): Matrix {
    return this.linear.weightA
  }

  /** B (D, r), the layer's own. */
  get weightB(): Matrix {
    return this.linear.weightB
  }

  /** Gives it its embedding (V, D), copied. Throws ShapeError when it is not (V, D), StateError while merged. */
  attachBase(embedding: MatrixLike): this {
    const location = this.#where('baseWeight')
    const matrix = toMatrix(embedding, location)
    checkShape(matrix, this.vocabulary, this.features, location)
    this.linear.baseWeight = transpose(matrix) // PEFT’s inits leave embeddings alone
    this.#tape = undefined
    return this
  }

  override merge(): void {
    super.merge()
    this.#tape = undefined
  }

  /** s·(B·A)ᵀ (V, D), a new matrix. */
  delta(): Matrix {
    return transpose(this.linear.delta())
  }

  /**
   * E + s·(B·A)ᵀ (V, D), with DoRA's magnitude, a new matrix; while merged, a copy of the base. Throws StateError
   * without a base.
   */
  effectiveWeight(): Matrix {
    return transpose(this.linear.effectiveWeight())
  }

  /**
   * Rows of the effective weight: n tokens → (n, D).
   *
   * @throws ShapeError for a token outside of [0, V), StateError without a base
   */
  forward(tokens: ArrayLike<number>): Matrix {
    const base = this.#needBase('forward') // (D, V)
    this.#checkTokens(tokens)
    const rows = columnsAt(base, tokens)
    this.#tape = undefined
    if (this.merged) return rows
    const { magnitude } = this
    const dora = magnitude && { magnitude, norms: rowNorms(addScaled(this.linear.delta(), base, 1)) }
    const hidden = columnsAt(this.weightA, tokens) // (n, r)
    const { output, tape } = addChange(this.#changeWeights(), rows, undefined, hidden, dora)
    this.#tape = { ...tape, tokens: Array.from(tokens) }
    return output
  }

  /**
   * Gradients for the last forward from that of its output (n, D); norms of DoRA count as constants, as in PEFT. In
   * PEFT, the padding token has no gradient. In lowrank, it has one.
   *
   * @throws StateError before a forward and while merged, ShapeError when gradOutput is not (n, D)
   */
  backward(gradOutput: MatrixLike): EmbeddingGradients {
    const tape = this.#tape
    const base = this.#needBase('backward')
    if (tape === undefined) throw noForward(this.#where('backward'), this.merged)
    const dy = inPrecisionOf(base.data, toMatrix(gradOutput, this.#where('gradOutput')))
    checkShape(dy, tape.tokens.length, this.features, this.#where('gradOutput'))
    const { hidden, weightB, magnitude } = changeGradients(this.#changeWeights(), tape, dy)
    const { rank, vocabulary } = this
    const weightA = zeros(rank, vocabulary, base.data)
    tape.tokens.forEach((token, i) => {
      for (let p = 0; p < rank; p++) weightA.data[p * vocabulary + token] += hidden.data[i * rank + p]
    })
    return { weightA, weightB, ...(magnitude && { magnitude }) }
  }

  #changeWeights(): ChangeWeights {
    return { weightB: this.weightB, scaling: this.scaling, biasB: undefined }
  }

  #needBase(member: string): Matrix {
    const { baseWeight } = this.linear
    if (baseWeight !== undefined) return baseWeight
    throw noBase(this.#where(member), 'attachBase(E)')
  }

  #checkTokens(tokens: ArrayLike<number>): void {
    const { vocabulary, features } = this
    for (let i = 0; i < tokens.length; i++) {
      if (Number.isInteger(tokens[i]) && tokens[i] >= 0 && tokens[i] < vocabulary) continue
      throw new ShapeError({
        where: this.#where('forward'),
        what: `no such row of an embedding ${formatShape([vocabulary, features])}`,
        got: String(tokens[i]),
      })
    }
  }

  #where(member: string): string {
    return where(this.name, member, 'EmbeddingLora')
  }
}

/** Columns of a matrix (m, V) as rows: n indices → (n, m). */
function columnsAt({ data, shape: [m, columns] }: Matrix, indices: ArrayLike<number>): Matrix {
  const result = zeros(indices.length, m, data)
  for (let i = 0, at = 0; i < indices.length; i++) {
    for (let j = 0; j < m; j++, at++) result.data[at] = data[j * columns + indices[i]]
  }
  return result
}
