// What is known of a linear layer of a graph.

import type { Product } from './forms/form.js'

/** One linear layer: output (…, d) = input (…, k) @ weight, or some columns of a product that computes several layers. */
export interface Linear extends Product {
  /** Module name, as in PEFT's files: model.layers.0.self_attn.q_proj */
  readonly name: string
  /** Whether it is the output embedding. */
  readonly isHead: boolean
  /** Where this layer's d columns begin in the product's output, when the product computes several layers at once. */
  readonly fused: { readonly module: string; readonly start: number; readonly width: number } | undefined
}
