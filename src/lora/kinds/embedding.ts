// An adapted embedding: E + s·(B·A)ᵀ with E (V, D), A (r, V), B (D, r). Its transpose is a linear layer's weight, so
// that a DoRA magnitude has one number for each of the D features, as in PEFT.

import {
  checkShape,
  type FloatArray,
  type Matrix,
  type MatrixLike,
  type Tensor,
  toMatrix,
  transpose,
} from '../../base/tensor.js'
import type { LoraConfigInput } from '../config.js'
import { type LayerVectors, where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { type FactorTensors, factorTensors } from '../part.js'
import { LinearBacked } from './linear-backed.js'

/**
 * An adapted embedding: rows of E + s·(B·A)ᵀ with E (V, D), A (r, V) and B (D, r). Made from trained factors, in
 * evaluation mode. Dropout, which PEFT does not apply to embeddings, has no effect.
 */
export class EmbeddingLora extends LinearBacked {
  readonly kind = 'embedding'

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

  /** E + s·(B·A)ᵀ of E (V, D), with DoRA's magnitude, a new matrix. Throws ShapeError for another shape. */
  effectiveWeight(embedding: MatrixLike): Matrix {
    const location = where(this.name, 'effectiveWeight', 'EmbeddingLora')
    const matrix = toMatrix(embedding, location)
    checkShape(matrix, this.vocabulary, this.features, location)
    return transpose(this.linear.adapted(transpose(matrix)))
  }
}
