// Grown vocabularies in a graph: embeddings, heads and logits take as many rows as adapters have saved.

import { MismatchError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import { type ValueInfoProto, ValueInfoProtoSchema } from '../../formats/onnx/gen/onnx_pb.js'
import { fromBinary, toBinary } from '../../formats/onnx/protobuf.js'
import { biasOf } from '../../graph/match/parameters.js'
import type { ModelPlaces } from '../../graph/match/stored-places.js'
import type { Edit } from './edits.js'

/** Returns the rows of the new vocabulary; undefined where it stays. */
export function resizeVocabulary({ graph, linears, embeddings }: ModelPlaces, edits: readonly Edit[]) {
  const grown = edits.filter(
    ({ base, placed }) => placed?.base && formatShape(placed.base.shape) !== formatShape(base.base.shape),
  )
  if (grown.length === 0) return undefined
  const [{ name: first, base, placed }] = grown
  const [before, after] = [base.base.shape, placed!.base!.shape]
  const axis = before.findIndex((size, i) => size !== after[i])
  const [rows, vocabulary] = [before[axis], after[axis]]
  const isGrown = (node: unknown) => grown.some((edit) => edit.node === node)
  const heads = linears.filter(({ isHead, d }) => isHead && d === rows)
  const left = [
    ...heads
      .filter((head) => !isGrown(head.node) || biasOf(graph, head) !== undefined)
      .map(({ name, k }) => ({ name, width: k })),
    ...embeddings.filter((own) => own.k === rows && !isGrown(own.node)).map(({ name, d }) => ({ name, width: d })),
  ]
  for (const { name, width } of left) {
    throw new MismatchError({
      where: name,
      what: `the adapter gives ${first} another number of rows, but not this module`,
      expected: formatShape([vocabulary, width]),
      got: formatShape([rows, width]),
      hint: 'Save the adapter with all embeddings that resize_token_embeddings has changed: save_embedding_layers=True',
    })
  }
  const lastOf = (info: ValueInfoProto) => {
    const type = info.type?.value
    return type?.case === 'tensorType' ? type.value.shape?.dim.at(-1) : undefined
  }
  const isOld = (info: ValueInfoProto) => Number(lastOf(info)?.value.value) === rows
  graph.valueInfo = graph.valueInfo.filter((info) => !isOld(info))
  graph.outputs = graph.outputs.map((output) => {
    if (!isOld(output)) return output
    const own = fromBinary(ValueInfoProtoSchema, toBinary(ValueInfoProtoSchema, output))
    lastOf(own)!.value = { case: 'dimValue', value: BigInt(vocabulary) }
    return own
  })
  return vocabulary
}
