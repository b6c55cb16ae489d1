// Starts of layers that are computed from data. The code loads with the first call.

import { checkArgument, checkOptions, FUNCTION, hasMethods, kind } from '../base/options.js'
import type { Matrix, MatrixLike } from '../base/tensor.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { CordaOptions, EvaOptions, LoftqOptions, LoraGaOptions } from '../lora/init/data-inits.js'
import { LoraLayer } from '../lora/layer.js'
import { CORDA_OPTIONS, EVA_OPTIONS, LOFTQ_OPTIONS, LORA_GA_OPTIONS } from './gen/options.js'
import { ADAPTER } from './kinds.js'

const LAYER = kind('a LoraLayer', (value) => value instanceof LoraLayer)

const INPUTS = kind('[name, inputs] of each layer, such as the entries of a Map', (value) =>
  hasMethods(value, Symbol.iterator),
)

/**
 * LoRA-GA (Wang et al. 2024, arXiv 2407.05000): A and B come from the singular vectors of the loss's gradient by W (d,
 * k). The base weight becomes W − s·B·A, so that the effective weight stays. Changes the layer in place. You can call
 * it again with another gradient.
 *
 * @throws ConfigError when the layer's init is not `lora-ga` or 2r is above min(d, k); StateError without a base weight
 *   or while merged; ShapeError when the gradient is not (d, k)
 *
 * @example
 * const layer = new LoraLayer(baseWeight, { rank: 2, init: 'lora-ga' })
 * await loraGaInitialize(layer, gradient) // of the loss by W, of the shape of W
 */
export async function loraGaInitialize(layer: LoraLayer, gradient: MatrixLike, options?: LoraGaOptions): Promise<void> {
  checkArgument(layer, LAYER, 'layer')
  checkOptions(options, 'loraGaInitialize', LORA_GA_OPTIONS)
  return (await import('../lora/init/data-inits.js')).loraGaInitialize(layer, gradient, options)
}

/**
 * CorDA (Yang et al. 2024, arXiv 2406.05223): the singular triples U·S·Vᵀ of W·C, of which Uᵣ·Uᵣᵀ·W moves into B·A. In
 * place.
 *
 * @param covariance C (k, k) of the layer's inputs: Σ xᵀ·x over batches x (n, k), in PEFT each divided by its largest
 *   value before, over the number of batches. Its size only moves weight between A and B.
 * @throws ConfigError when the layer's init is not `corda`; StateError without a base weight or while merged;
 *   ShapeError when the covariance is not (k, k)
 *
 * @example
 * const layer = new LoraLayer(baseWeight, { rank: 2, init: 'corda' })
 * await cordaInitialize(layer, covariance)
 */
export async function cordaInitialize(layer: LoraLayer, covariance: MatrixLike, options?: CordaOptions): Promise<void> {
  checkArgument(layer, LAYER, 'layer')
  checkOptions(options, 'cordaInitialize', CORDA_OPTIONS)
  return (await import('../lora/init/data-inits.js')).cordaInitialize(layer, covariance, options)
}

/**
 * LoftQ (Li et al. 2023, arXiv 2310.08659): replaces the layer's W (d, k) by a quantized weight Q, and sets B·A to the
 * best approximation of the quantization error: Q and s·B·A are found in turns, Q = quantize(W − s·B·A) and s·B·A =
 * SVDᵣ(W − Q). In place. As plain LoRA the factors belong to the quantized base. PEFT does not divide by s; the two
 * agree where s = 1.
 *
 * @param quantize function that returns the dequantized values of a weight (d, k); for a base that is quantized
 *   already, `() => Q`
 * @param options iterations: how often; 1 where Q is given. Default 1.
 * @throws ConfigError when iterations is not an integer above 0, or the layer's init takes from the base itself;
 *   StateError without a base weight or while merged; ShapeError when Q is not (d, k)
 *
 * @example
 * const layer = new LoraLayer(baseWeight, { rank: 2 })
 * const quantize = ({ data, shape }) => ({ data: data.map((value) => Math.round(value * 8) / 8), shape })
 * await loftqInitialize(layer, quantize, { iterations: 5 })
 */
export async function loftqInitialize(
  layer: LoraLayer,
  quantize: (weight: Matrix) => MatrixLike,
  options?: LoftqOptions,
): Promise<void> {
  checkArgument(layer, LAYER, 'layer')
  checkArgument(quantize, FUNCTION, 'quantize')
  checkOptions(options, 'loftqInitialize', LOFTQ_OPTIONS)
  return (await import('../lora/init/data-inits.js')).loftqInitialize(layer, quantize, options)
}

/**
 * EVA (Paischer et al. 2024, arXiv 2410.07170): a new adapter whose A hold the principal directions of the layers'
 * inputs, B zero, and whose ranks are higher in layers where they explain more variance. The sum of the ranks does not
 * change. Layers without inputs start as `kaiming-uniform`. Layers with rank 0 are left out. The new adapter keeps the
 * base weights.
 *
 * @param inputs layer name → what went into the layer (n, k), in any order; a layer at a time is held
 * @throws ConfigError when ρ is below 1; MismatchError for a name that is no layer's; ShapeError when inputs are not
 *   (n, k), or fewer rows than ρ·r; UnsupportedError when the adapter has more than plain linear layers
 *
 * @example
 * const adapter = new LoraAdapter({ rank: 1, init: 'eva' })
 * adapter.addLayer('q_proj', baseWeight)
 * const started = await evaInitialize(adapter, [['q_proj', x]]) // x went into the layer
 */
export async function evaInitialize(
  adapter: LoraAdapter,
  inputs: Iterable<readonly [name: string, inputs: MatrixLike]>,
  options?: EvaOptions,
): Promise<LoraAdapter> {
  checkArgument(adapter, ADAPTER, 'adapter')
  checkArgument(inputs, INPUTS, 'inputs')
  checkOptions(options, 'evaInitialize', EVA_OPTIONS)
  return (await import('../lora/init/data-inits.js')).evaInitialize(adapter, inputs, options)
}
