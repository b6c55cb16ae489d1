// Marks a Gather whose indices are all different: its gradient then goes back to its places in one pass, where a general
// one has to add up what came to the same place.

import { create } from '@bufbuild/protobuf'
import { type NodeProto, StringStringEntryProtoSchema } from '../../formats/onnx/gen/onnx_pb.js'

const KEY = 'lowrank.distinct'

export function markDistinct(node: NodeProto): void {
  node.metadataProps = [...node.metadataProps, create(StringStringEntryProtoSchema, { key: KEY, value: 'indices' })]
}

export function isDistinct(node: NodeProto): boolean {
  return node.metadataProps.some(({ key }) => key === KEY)
}
