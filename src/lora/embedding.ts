// An adapted embedding: rows of E + s·(B·A)ᵀ with E (V, D), A (r, V), B (D, r). Its transpose is a linear layer's weight, which
// does the work here, so that a DoRA magnitude has one number for each of the D features, as in PEFT.

import type { FloatDtype } from '../base/dtype.js'
import { ShapeError } from '../base/errors.js'
import {
  checkShape,
  type FloatArray,
  formatShape,
  type Matrix,
  type MatrixLike,
  toMatrix,
  zeros,
} from '../base/tensor.js'
import type { LoraConfig, LoraConfigInput } from './config.js'
import type { LayerVectors } from './factors.js'
import { LoraLayer } from './layer.js'
import { transpose } from './product.js'

/** Made from trained factors, in evaluation mode. Dropout, which PEFT does not apply to embeddings, has no effect. */
export class EmbeddingLora {
  readonly #linear: LoraLayer

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
    this.#linear = LoraLayer.fromFactors(weightA, weightB, config, name, vectors)
  }

  get name(): string {
    return this.#linear.name
  }

  /** The layer's own: rank and alpha are what the patterns give its name. */
  get config(): LoraConfig {
    return this.#linear.config
  }

  /** V: rows of the embedding. */
  get vocabulary(): number {
    return this.#linear.k
  }

  /** D: features of a row. */
  get features(): number {
    return this.#linear.d
  }

  get rank(): number {
    return this.#linear.rank
  }

  get scaling(): number {
    return this.#linear.scaling
  }

  get dtype(): FloatDtype {
    return this.#linear.dtype
  }

  set dtype(value: FloatDtype) {
    this.#linear.dtype = value
  }

  get weightA(): Matrix {
    return this.#linear.weightA
  }

  get weightB(): Matrix {
    return this.#linear.weightB
  }

  /** DoRA's m (D). */
  get magnitude(): FloatArray | undefined {
    return this.#linear.magnitude
  }

  get merged(): boolean {
    return this.#linear.merged
  }

  /** Gives it its embedding (V, D), copied. Throws ShapeError when it is not (V, D), StateError while merged. */
  attachBase(embedding: MatrixLike): this {
    const where = `${this.name || 'EmbeddingLora'}.baseWeight`
    const matrix = toMatrix(embedding, where)
    checkShape(matrix, this.vocabulary, this.features, where)
    this.#linear.attachBase(transpose(matrix))
    return this
  }

  /** s·(B·A)ᵀ (V, D), a new matrix. */
  delta(): Matrix {
    return transpose(this.#linear.delta())
  }

  /** (V, D), a new matrix. Throws StateError without a base. */
  effectiveWeight(): Matrix {
    return transpose(this.#linear.effectiveWeight())
  }

  /**
   * Rows of the effective weight: n tokens → (n, D).
   *
   * @throws ShapeError for a token outside of [0, V), StateError without a base
   */
  forward(tokens: ArrayLike<number>): Matrix {
    const weight = this.#linear.effectiveWeight() // (D, V)
    const { vocabulary, features } = this
    const result = zeros(tokens.length, features, weight.data)
    for (let i = 0; i < tokens.length; i++) {
      const token = tokens[i]
      if (!Number.isInteger(token) || token < 0 || token >= vocabulary) {
        throw new ShapeError({
          where: `${this.name || 'EmbeddingLora'}.forward`,
          what: `no such row of an embedding ${formatShape([vocabulary, features])}`,
          got: String(token),
        })
      }
      for (let j = 0; j < features; j++) result.data[i * features + j] = weight.data[j * vocabulary + token]
    }
    return result
  }

  /** Folds the delta into the base. Throws as {@link LoraLayer.merge} does. */
  merge(): void {
    this.#linear.merge()
  }

  /** Gives back the base bit for bit. Throws StateError when not merged. */
  unmerge(): void {
    this.#linear.unmerge()
  }

  /** r·(V + D), and D more with a magnitude */
  trainableParams(): number {
    return this.#linear.trainableParams()
  }

  /** V·D + trainableParams() */
  totalParams(): number {
    return this.#linear.totalParams()
  }

  normA(): number {
    return this.#linear.normA()
  }

  normB(): number {
    return this.#linear.normB()
  }

  /** ‖s·B·A‖, Frobenius, without forming B·A. */
  normDelta(): number {
    return this.#linear.normDelta()
  }
}
