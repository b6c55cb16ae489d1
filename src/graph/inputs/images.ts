// Inputs of encoders over pictures.

import { UnsupportedError } from '../../base/errors.js'
import { TensorProto_DataType as DataType } from '../../formats/onnx/gen/onnx_pb.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'

/** What exporters call the input (batch, 3, height, width). */
export const PIXELS = 'pixel_values'

/** Whether a graph reads pictures. */
export function takesImages(graph: Pick<Graph, 'inputs'>): boolean {
  return graph.inputs.some(({ name }) => name === PIXELS)
}

/** Throws UnsupportedError for a graph that reads more than pictures, or none, or in another type than float32. */
export function checkImageInputs(graph: Pick<Graph, 'inputs'>): void {
  const [input, ...others] = graph.inputs
  const type = input?.type?.value
  const isFloat = type?.case !== 'tensorType' || type.value.elemType === DataType.FLOAT
  if (input?.name === PIXELS && others.length === 0 && isFloat) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: takesImages(graph)
      ? 'it reads more than pictures, or in another type than float32'
      : 'it does not read pictures',
    expected: `one input ${PIXELS}, float32`,
    got: `inputs ${graph.inputs.map(({ name }) => name).join(', ')}`,
  })
}

/** @param pixels (batch, 3, height, width) */
export function imageFeeds(pixels: Float32Array, batch: number, height: number, width: number): Feeds {
  return { [PIXELS]: { type: 'float32', data: pixels, dims: [batch, 3, height, width] } }
}
