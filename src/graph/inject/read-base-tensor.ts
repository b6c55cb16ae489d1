// The values of a tensor of the base, in the shape that it has in PyTorch.

import { UnsupportedError } from '../../base/errors.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import type { BaseTensor } from '../match/base-tensors.js'
import { openFloatLines } from '../match/forms/float-product.js'
import { storedValue } from '../match/parameters.js'
import type { Graph } from '../view/graph.js'
import { readVector } from './affine.js'

/**
 * Its values in f32, in the tensor's shape.
 *
 * @throws UnsupportedError when they cannot be read
 */
export async function readBaseTensor(
  model: OnnxModel,
  graph: Graph,
  { name, shape, places: [place] }: BaseTensor,
): Promise<Float32Array> {
  if (place.kind === 'vector') {
    const { node, input } = place.place
    const values = await readVector(model, graph, node.input[input])
    if (values === undefined) throw new UnsupportedError({ where: name, what: 'the base’s values cannot be read' })
    const start = place.part?.start ?? 0
    return values.slice(start, start + shape[0])
  }
  if (place.kind === 'lookup') {
    const { node, vocabulary, features, transposed } = place.embedding
    const weight = storedValue(graph, node.input[place.embedding.input])
    const read = await openFloatLines(model, graph, { node, weight, problem: undefined })
    const lines = await read(0, transposed ? features : vocabulary)
    return transposed ? swapped(lines, [features, vocabulary]) : lines
  }
  const { form, transposed, k, d } = place.linear
  const lines = await (await form.openLines(model, graph, place.linear))(0, transposed ? d : k)
  if (transposed !== place.isInputMajor) return lines
  return swapped(lines, transposed ? [d, k] : [k, d])
}

/** A matrix with its axes swapped. */
function swapped(values: Float32Array, [rows, columns]: readonly [number, number]): Float32Array {
  const result = new Float32Array(values.length)
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) result[j * rows + i] = values[i * columns + j]
  return result
}
