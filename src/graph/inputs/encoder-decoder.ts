// Inputs of graphs that join an encoder and its decoder, with the names of optimum and transformers.js.

import { UnsupportedError } from '../../base/errors.js'
import { copyMessage } from '../../formats/onnx/messages.js'
import type { ValueInfoProto } from '../../formats/onnx/tensors.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'
import { FEATURES, OF_DECODER } from './family.js'
import { dimsOfInput, roleFeeds, splitInputs, type TokenBatch } from './roles.js'

/** Prefix of the locations of the encoder's weights in a joined graph. */
export const ENCODER_FILES = 'encoder/'

export type EncoderBatch = TokenBatch | { readonly batch: number; readonly features: Float32Array }

export interface JoinedInputs {
  /** (bands, times); undefined for a graph that reads tokens. */
  readonly features: readonly [number, number] | undefined
  feeds(source: EncoderBatch, target: TokenBatch): Feeds
}

export function joinedInputs(graph: Graph): JoinedInputs {
  const isOfDecoder = ({ name }: ValueInfoProto) => name.startsWith(OF_DECODER)
  const withoutPrefix = graph.inputs
    .filter(isOfDecoder)
    .map((input) => copyMessage(input, { name: input.name.slice(OF_DECODER.length) }))
  const decoder = splitInputs({ inputs: withoutPrefix })
  const encoder = splitInputs({ inputs: graph.inputs.filter((input) => !isOfDecoder(input)) })
  const sounds = encoder.others.find(({ name }) => name === FEATURES)
  const [, bands, times] = sounds === undefined ? [] : dimsOfInput(sounds)
  const unknown = [
    ...encoder.others.filter((input) => input !== sounds || bands === undefined || times === undefined),
    ...decoder.others.map(({ name }) => ({ name: OF_DECODER + name })),
  ]
  if (unknown.length > 0) {
    throw new UnsupportedError({
      where: 'ONNX model',
      what: `inputs of unknown meaning: ${unknown.map(({ name }) => name).join(', ')}`,
      expected: 'an encoder that reads input_ids or input_features, and a decoder that reads input_ids',
      got: `inputs ${graph.inputs.map(({ name }) => name).join(', ')}`,
    })
  }
  return {
    features: sounds && [bands as number, times as number],
    feeds(source, target) {
      const decoderFeeds = Object.entries(roleFeeds(decoder.roles, target)).map(([name, feed]) => [
        OF_DECODER + name,
        feed,
      ])
      const dims = [source.batch, bands as number, times as number]
      return {
        ...('features' in source
          ? { [FEATURES]: { type: 'float32' as const, data: source.features, dims } }
          : roleFeeds(encoder.roles, source)),
        ...Object.fromEntries(decoderFeeds),
      }
    },
  }
}
