// What adapters hold besides low-rank factors: whole tensors that replace the base's (PEFT's modules_to_save, trained biases,
// resized embeddings) and single rows of embeddings (trainable_token_indices). Bytes as stored, so that they stay exact.

import type { TensorDtype } from '../base/dtype.js'

/** A tensor as its file holds it: little-endian, row-major. */
export interface StoredTensor {
  readonly dtype: TensorDtype
  readonly shape: readonly number[]
  /** The file's bytes. */
  readonly data: Uint8Array
}

/** Takes the place of the base's tensor. */
export interface Replacement extends StoredTensor {
  /** Its key in PEFT's file without the prefix; the base's name, but for `base_layer` in it. */
  readonly key: string
  /** False for embeddings that are saved along because the vocabulary was resized, or they are adapted. */
  readonly isTrained: boolean
}

/** Rows (n, D) that take the place of the embedding's rows `indices`. */
export interface TokenRows extends StoredTensor {
  /** In the order of the rows. */
  readonly indices: readonly number[]
}
