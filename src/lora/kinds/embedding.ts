// An adapted embedding: E + s·(B·A)ᵀ with E (V, D), A (r, V), B (D, r). The transpose of E is treated as the weight of
// a linear layer, so a DoRA magnitude has a number for each of the D features, as in PEFT.

import {
  checkShape,
  type FloatArray,
  type Matrix,
  type MatrixLike,
  type Tensor,
  toMatrix,
  transpose,
} from '../../core/base/tensor.js'
import type { LoraConfigInput } from '../config.js'
import { type LayerVectors, where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { type FactorTensors, factorTensors } from '../part.js'
import { LinearBacked } from './linear-backed.js'

/**
 * An adapted embedding: E + s·(B·A)ᵀ with E (V, D), A (r, V) and B (D, r). It is made from trained factors, in
 * evaluation mode. Dropout has no effect: PEFT does not apply it to embeddings.
 */
export class EmbeddingLora extends LinearBacked {
  readonly kind = 'embedding'

  /**
   * @param weightA (r, V), where V is the number of rows of the embedding
   * @param weightB (D, r), where D is the number of features
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

  /** @internal The factors as a linear layer with V inputs and D outputs. */
  get product(): LoraLayer {
    return this.linear
  }

  /** V, the number of rows of the embedding. */
  get vocabulary(): number {
    return this.linear.k
  }

  /** D, the number of features of a row. */
  get features(): number {
    return this.linear.d
  }

  /** A (r, V). This is not a copy: if you edit its data, the layer changes. */
  get weightA(): Matrix {
    return this.linear.weightA
  }

  /** B (D, r). Like `weightA`, it is not a copy. */
  get weightB(): Matrix {
    return this.linear.weightB
  }

  /**
   * Returns E + s·(B·A)ᵀ for E (V, D), with DoRA's magnitude if there is one, as a new matrix. Throws ShapeError for
   * another shape.
   */
  effectiveWeight(embedding: MatrixLike): Matrix {
    const location = where(this.name, 'effectiveWeight', 'EmbeddingLora')
    const matrix = toMatrix(embedding, location)
    checkShape(matrix, this.vocabulary, this.features, location)
    return transpose(this.linear.adapted(transpose(matrix)))
  }
}
