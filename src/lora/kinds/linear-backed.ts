// The base class of embeddings and convolutions. A linear layer holds their factors, reshaped.

import type { FloatArray } from '../../core/base/tensor.js'
import type { LoraConfig } from '../config.js'
import type { LoraLayer } from '../layer.js'
import { FactorPart } from '../part.js'

export abstract class LinearBacked extends FactorPart {
  /** The layer's settings, with the rank and alpha that the config's patterns give its name. */
  readonly config: LoraConfig
  /** @internal */
  protected readonly linear: LoraLayer

  /** @param config the settings, if they differ from the linear layer's */
  protected constructor(linear: LoraLayer, config: LoraConfig = linear.config) {
    super()
    this.linear = linear
    this.config = config
  }

  /** The layer's name in its model; empty for a single layer. */
  get name(): string {
    return this.linear.name
  }

  /** DoRA's magnitude m, a number for each output feature. This is not a copy. */
  get magnitude(): FloatArray | undefined {
    return this.linear.magnitude
  }
}
