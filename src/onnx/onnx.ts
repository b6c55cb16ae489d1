// lowrank/onnx: automatic gradients of ONNX graphs.

// The files of src/onnx/, in reading order:
//   README.md         a tour of an hour
//   differentiate.ts  the whole way from a graph to one with gradients
//   format/           reads and writes files
//   view/             looks at a graph, and builds nodes
//   gradients/        the rules; backward.ts applies them
//   shapes/           measures shapes
//   lower/            splits fused operators into ordinary ones
//   recompute/        saves memory
//   runtime/          the part of ONNX Runtime that is used, workers, and calls between threads
//   node/             `lowrank/onnx` in Node

/** @module lowrank/onnx */

import { ConfigError } from '../core/base/errors.js'
import { checkArgument, checkOptions, kind, NAME } from '../core/base/options.js'
import { differentiate, type GradientGraph, type GradientOptions } from './differentiate.js'
import { GRADIENT_OPTIONS } from './gen/options.js'
import { runtimeOf } from './runtime/onnxruntime.js'

export type { GradientGraph, GradientOptions } from './differentiate.js'
export type { OrtModule } from './runtime/onnxruntime.js'
export type { Feeds, RuntimeTensor, TensorData, TensorType } from './runtime/runtime.js'

/**
 * Appends the computation of gradients to an ONNX graph. The result runs in every ONNX Runtime, because it consists of
 * ordinary operators.
 *
 * @param graph the bytes of an .onnx file, or its path in Node. If the weights are in another file, the new graph
 *   refers to it too
 * @throws UnsupportedError if an operator on the way has no gradient; it names all such nodes
 * @example
 * ```js
 * import * as ort from 'onnxruntime-node'
 * import { gradients } from 'lowrank/onnx'
 *
 * const result = await gradients('model.onnx', {
 *   of: 'loss',
 *   by: ['fc.weight'],
 *   feeds: (size) => ({ input: new ort.Tensor('float32', new Float32Array(size * 10), [size, 10]) }),
 * })
 * const session = await ort.InferenceSession.create(result.graph)
 * ```
 */
export async function gradients(graph: Uint8Array | string, options: GradientOptions): Promise<GradientGraph> {
  checkGradients(graph, options)
  if (typeof graph === 'string' || options.runtime === undefined) {
    const [where, expected] =
      typeof graph === 'string' ? ['graph', 'a Uint8Array'] : ['runtime', 'the imported onnxruntime-web']
    throw new ConfigError({ where, what: 'outside of Node, it must be given', expected })
  }
  return differentiate({ name: 'graph', bytes: graph }, options, runtimeOf(options.runtime))
}

/** @internal */
export function checkGradients(graph: unknown, options: unknown): void {
  checkArgument(graph, GRAPH, 'graph')
  checkOptions(options, 'gradients', GRADIENT_OPTIONS)
}

const GRAPH = kind('a Uint8Array, or a path in Node', (value) => value instanceof Uint8Array || NAME.accepts(value))
