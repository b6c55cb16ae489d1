// Whether a graph's output embedding is its input embedding: one initializer, or, where an exporter has folded a transpose into a
// copy of it, two of the same values. A quantizer makes a third kind: the head has integers that stand for about the same values.

import { decodeFloats } from '../../base/dtype.js'
import type { TensorProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { byteLengthOf } from '../../formats/onnx/tensors.js'
import type { Graph } from '../view/graph.js'
import { FLOAT_DTYPES } from './forms/float-product.js'
import type { Linear } from './linears.js'
import { type Embedding, storedValue } from './parameters.js'

/** Tokens that are compared, in two stretches: untied embeddings differ in all. */
const COMPARED_TOKENS = 64

/** Elements of a piece of a weight: 4 MiB in f32. */
const PIECE_ELEMENTS = 1 << 20

/** The heads that use the values of an embedding. Of separate initializers 64 tokens from two places are compared. */
export async function tiedHeads(
  model: OnnxModel,
  graph: Graph,
  embedding: Embedding,
  linears: readonly Linear[],
): Promise<Linear[]> {
  const { vocabulary, features, node } = embedding
  const result: Linear[] = []
  for (const linear of linears) {
    if (!linear.isHead || linear.d !== vocabulary || linear.k !== features) continue
    if (linear.form.isQuantized || embedding.integers !== undefined) {
      if (await standsFor(model, graph, embedding, linear)) result.push(linear)
      continue
    }
    const [one, other] = [storedValue(graph, node.input[0]), storedValue(graph, linear.node.input[1])]
    if (one === other || (await haveSameTokens(model, graph, one, embedding, other, linear))) result.push(linear)
  }
  return result
}

/** 4 bits change a weight by about a tenth of its norm; between untied weights the distance is larger than the norm. */
const QUANTIZED_DISTANCE = 0.4

/** Whether a head has about an embedding's values, where one of the two or both are stored as integers. */
async function standsFor(model: OnnxModel, graph: Graph, embedding: Embedding, head: Linear): Promise<boolean> {
  const count = Math.min(COMPARED_TOKENS, embedding.vocabulary)
  const first = Math.floor((embedding.vocabulary - count) / 2)
  const values = await embeddingTokens(model, graph, embedding, first, count)
  if (values === undefined || head.problem !== undefined) return false
  const others = await headTokens(model, graph, head, first, count)
  let [square, distance] = [0, 0]
  for (let i = 0; i < values.length; i++) {
    square += values[i] ** 2
    distance += (values[i] - others[i]) ** 2
  }
  return distance < QUANTIZED_DISTANCE ** 2 * square
}

/** Some tokens (count, features) of an embedding; undefined where they cannot be read. */
async function embeddingTokens(
  model: OnnxModel,
  graph: Graph,
  { vocabulary, features, transposed, node, integers }: Embedding,
  first: number,
  count: number,
): Promise<Float32Array | undefined> {
  if (integers !== undefined) {
    return integers.problem === undefined
      ? (await integers.form.openLines(model, graph, integers))(first, count)
      : undefined
  }
  const tensor = graph.constant(storedValue(graph, node.input[0])) as TensorProto
  const dtype = FLOAT_DTYPES[tensor.dataType]
  if (dtype === undefined) return undefined
  const size = byteLengthOf(tensor.dataType, [1]) ?? 0
  const shape = { vocabulary, features, size, first, count, isTokenMajor: !transposed }
  return decodeFloats(await tokensOf(model, tensor, shape), dtype)
}

/** Some tokens (count, features) of a head. Of one that is stored (k, d) all is read, in pieces. */
async function headTokens(
  model: OnnxModel,
  graph: Graph,
  head: Linear,
  first: number,
  count: number,
): Promise<Float32Array> {
  const { transposed, k, d } = head
  const read = await head.form.openLines(model, graph, head)
  if (transposed) return read(first, count)
  const result = new Float32Array(count * k)
  const lines = Math.max(1, Math.floor(PIECE_ELEMENTS / d))
  for (let line = 0; line < k; line += lines) {
    const piece = await read(line, Math.min(lines, k - line))
    for (let i = 0; i < piece.length / d; i++) {
      for (let j = 0; j < count; j++) result[j * k + line + i] = piece[i * d + first + j]
    }
  }
  return result
}

async function haveSameTokens(
  model: OnnxModel,
  graph: Graph,
  one: string,
  embedding: Embedding,
  other: string,
  head: Linear,
): Promise<boolean> {
  const { vocabulary, features } = embedding
  const [a, b] = [graph.constant(one) as TensorProto, graph.constant(other) as TensorProto]
  if (a.dataType !== b.dataType) return false
  const size = byteLengthOf(a.dataType, [1]) ?? 0
  const count = Math.min(COMPARED_TOKENS / 2, vocabulary)
  for (const first of [0, Math.floor((vocabulary - count) / 2)]) {
    const shape = { vocabulary, features, size, first, count }
    const tokens = await tokensOf(model, a, { ...shape, isTokenMajor: !embedding.transposed })
    const same = await tokensOf(model, b, { ...shape, isTokenMajor: head.transposed })
    if (tokens.some((byte, i) => byte !== same[i])) return false
  }
  return true
}

/** The bytes of some tokens (count, features), however the matrix is stored. */
async function tokensOf(
  model: OnnxModel,
  tensor: TensorProto,
  shape: { vocabulary: number; features: number; size: number; first: number; count: number; isTokenMajor: boolean },
): Promise<Uint8Array> {
  const { vocabulary, features, size, first, count, isTokenMajor } = shape
  if (isTokenMajor) return model.readPart(tensor, first * features * size, count * features * size)
  const result = new Uint8Array(count * features * size)
  for (let j = 0; j < features; j++) {
    const column = await model.readPart(tensor, (j * vocabulary + first) * size, count * size)
    for (let i = 0; i < count; i++) result.set(column.subarray(i * size, (i + 1) * size), (i * features + j) * size)
  }
  return result
}
