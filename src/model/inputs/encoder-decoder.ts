// Inputs of graphs that join an encoder and its decoder, with the names of optimum and transformers.js.

import { UnsupportedError } from '../../core/base/errors.js'
import { copyMessage } from '../../onnx/format/messages.js'
import type { ValueInfoProto } from '../../onnx/format/tensors.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Graph } from '../../onnx/view/graph.js'
import { OF_DECODER } from './family.js'
import { roleFeeds, splitInputs, type TokenBatch } from './roles.js'

/** Prefix of the locations of the encoder's weights in a joined graph. */
export const ENCODER_FILES = 'encoder/'

/** Makes the feeds of a run. Throws UnsupportedError if the graph has inputs of unknown meaning. */
export function joinedFeeds(graph: Graph): (source: TokenBatch, target: TokenBatch) => Feeds {
  const isOfDecoder = ({ name }: ValueInfoProto) => name.startsWith(OF_DECODER)
  const withoutPrefix = graph.inputs
    .filter(isOfDecoder)
    .map((input) => copyMessage(input, { name: input.name.slice(OF_DECODER.length) }))
  const decoder = splitInputs({ inputs: withoutPrefix })
  const encoder = splitInputs({ inputs: graph.inputs.filter((input) => !isOfDecoder(input)) })
  const unknown = [...encoder.others, ...decoder.others.map(({ name }) => ({ name: OF_DECODER + name }))]
  if (unknown.length > 0) {
    throw new UnsupportedError({
      where: 'ONNX model',
      what: `inputs of unknown meaning: ${unknown.map(({ name }) => name).join(', ')}`,
      expected: 'an encoder that reads input_ids, and a decoder that reads input_ids',
      got: `inputs ${graph.inputs.map(({ name }) => name).join(', ')}`,
    })
  }
  return (source, target) => {
    const written = Object.entries(roleFeeds(decoder.roles, target))
    const decoderFeeds = Object.fromEntries(written.map(([name, feed]) => [OF_DECODER + name, feed]))
    return { ...roleFeeds(encoder.roles, source), ...decoderFeeds }
  }
}
