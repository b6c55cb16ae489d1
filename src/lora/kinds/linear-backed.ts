// Embeddings and convolutions: a linear layer holds their factors, reshaped.

import type { FloatDtype } from '../../base/dtype.js'
import type { FloatArray } from '../../base/tensor.js'
import type { LoraConfig } from '../config.js'
import type { LoraLayer } from '../layer.js'
import { Part } from '../part.js'

export abstract class LinearBacked extends Part {
  /** The layer's settings: rank and alpha are those that the config's patterns give its name. */
  readonly config: LoraConfig
  /** @internal */
  protected readonly linear: LoraLayer

  /** @param config unless it is the linear layer's */
  protected constructor(linear: LoraLayer, config: LoraConfig = linear.config) {
    super()
    this.linear = linear
    this.config = config
  }

  /** The layer's name in its model; empty for a single layer. */
  get name(): string {
    return this.linear.name
  }

  /** r: rows of A. */
  get rank(): number {
    return this.linear.rank
  }

  /** s, by which the product of the factors is multiplied. */
  get scaling(): number {
    return this.linear.scaling
  }

  /** The type that the layer is saved in, unless saving names another: that of the file it came from, else fp32. */
  get dtype(): FloatDtype {
    return this.linear.dtype
  }

  set dtype(value: FloatDtype) {
    this.linear.dtype = value
  }

  /** DoRA's m, one number for each output feature, the layer's own. */
  get magnitude(): FloatArray | undefined {
    return this.linear.magnitude
  }

  /** ‖s·B·A‖, Frobenius, without forming B·A. */
  normDelta(): number {
    return this.linear.normDelta()
  }
}
