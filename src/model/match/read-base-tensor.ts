// Reads tensors of the base, or some of their rows, in PyTorch's layout.

import { decodeFloats } from '../../core/base/dtype.js'
import { UnsupportedError } from '../../core/base/errors.js'
import { transpose } from '../../core/base/tensor.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { VectorPlacement, WeightPlacement } from '../place/placement.js'
import { FLOAT_DTYPES } from './forms/float-product.js'
import type { Linear } from './linears.js'
import { storedValue } from './parameters.js'

/** Reads the base's values at the place of a weight, or of a vector of `length` values. */
export async function readBaseTensor(
  model: OnnxModel,
  graph: Graph,
  at: WeightPlacement | VectorPlacement,
  length: number,
): Promise<Float32Array> {
  if (at.kind === 'vector') {
    const { node, input, part, start = 0 } = at
    return (await readVector(model, graph, node.input[input], part)).slice(start, start + length)
  }
  const { form, transposed, k, d } = at.linear
  const lines = await (await form.openLines(model, graph, at.linear))(0, transposed ? d : k)
  // In PyTorch a weight is (d, k), and an embedding (k, d).
  if (transposed !== (form.isLookup === true)) return lines
  return transpose({ data: lines, shape: transposed ? [d, k] : [k, d] }).data as Float32Array
}

/** Reads a tensor as f32. Throws UnsupportedError, with `where`, if its type is not a float. */
export async function readVector(model: OnnxModel, graph: Graph, value: string, where: string): Promise<Float32Array> {
  const tensor = graph.constant(storedValue(graph, value))
  const dtype = tensor && FLOAT_DTYPES[tensor.dataType]
  if (tensor === undefined || dtype === undefined)
    throw new UnsupportedError({ where, what: 'the base’s values cannot be read' })
  return decodeFloats(await model.readTensor(tensor), dtype)
}

/** How many elements are read at a time: 4 MiB in f32. */
const PIECE_ELEMENTS = 1 << 20

/** Reads the tokens' rows, (m, D) in f32. Reads only these rows; a weight stored as (D, V) it reads piece by piece. */
export async function readTokenRows(
  model: OnnxModel,
  graph: Graph,
  place: Linear,
  tokens: readonly number[],
): Promise<Float32Array> {
  const { form, transposed, k, d } = place
  const isEmbedding = form.isLookup === true
  const read = await form.openLines(model, graph, place)
  const [count, width] = isEmbedding ? [k, d] : [d, k]
  const rows = new Float32Array(tokens.length * width)
  if (isEmbedding !== transposed) {
    for (const [i, token] of tokens.entries()) rows.set(await read(token, 1), i * width)
    return rows
  }
  const most = Math.max(1, Math.floor(PIECE_ELEMENTS / count))
  for (let first = 0; first < width; first += most) {
    const lines = Math.min(most, width - first)
    const piece = await read(first, lines)
    for (const [i, token] of tokens.entries()) {
      for (let line = 0; line < lines; line++) rows[i * width + first + line] = piece[line * count + token]
    }
  }
  return rows
}
