// Whether a graph's output embedding is its input embedding: one initializer, or, where an exporter has folded a transpose into a
// copy of it, two of the same values.

import type { TensorProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { byteLengthOf } from '../../formats/onnx/tensors.js'
import type { Linear } from '../../graph/match/linears.js'
import { type Embedding, storedValue } from '../../graph/match/parameters.js'
import type { Graph } from '../../graph/view/graph.js'

/** Tokens that are compared, in two stretches: untied embeddings differ in all. */
const COMPARED_TOKENS = 64

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
    if (!linear.isHead || linear.d !== vocabulary || linear.k !== features || linear.form.isQuantized) continue
    const [one, other] = [storedValue(graph, node.input[0]), storedValue(graph, linear.node.input[1])]
    if (one === other || (await haveSameTokens(model, graph, one, embedding, other, linear))) result.push(linear)
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
