import { describe, expect, it } from 'vitest'
import { inputFamily } from '../../../src/model/inputs/family.js'
import { encoderInputs } from '../../../src/model/inputs/tokens.js'
import type { Graph } from '../../../src/onnx/view/graph.js'
import { completeFeeds } from '../../../src/run/feeds.js'
import { addInput, addOutput, DataType, emptyGraph, floats, ints, valuesOf } from '../../onnx/toolkit.js'

type Input = [name: string, type: DataType, dims: (number | string)[]]

function graphOf(...inputs: Input[]): Graph {
  const graph = emptyGraph(17)
  for (const [name, type, dims] of inputs) addInput(graph, name, type, dims)
  addOutput(graph, 'logits', DataType.FLOAT)
  return graph
}

const { INT64, FLOAT, BOOL } = DataType
const ids: Input = ['input_ids', INT64, ['batch_size', 'sequence_length']]
const mask: Input = ['attention_mask', INT64, ['batch_size', 'sequence_length']]
const types: Input = ['token_type_ids', INT64, ['batch_size', 'sequence_length']]
const states: Input = ['encoder_hidden_states', FLOAT, ['batch_size', 'encoder_sequence_length', 16]]
const past = (part: string): Input => [`past_key_values.0.${part}.key`, FLOAT, ['batch_size', 4, 'past_length', 8]]

it.each<[string | undefined, Input[]]>([
  ['tokens', [ids, mask, ['past_key_values.0.key', FLOAT, ['batch_size', 4, 'past_sequence_length', 8]]]],
  ['tokens', [ids, mask, ['position_ids', INT64, ['batch_size', 'sequence_length']]]],
  ['encoder', [ids, mask, types]],
  ['encoder', [ids, mask]],
  ['pixels', [['pixel_values', FLOAT, ['batch_size', 3, 'height', 'width']]]],
  ['pixels', [['pixel_values', FLOAT, ['batch_size', 3, 'height', 'width']], ids, mask]],
  ['encoder-decoder', [['encoder_attention_mask', INT64, ['b', 's']], ids, states]],
  ['features', [['input_features', FLOAT, ['batch_size', 80, 3000]]]],
  [undefined, [['input_values', FLOAT, ['batch_size', 16000]]]],
])('%s', (family, inputs) => {
  expect(inputFamily(graphOf(...inputs))?.name).toBe(family)
})

describe('what a caller leaves out', () => {
  it('of an encoder: the mask, and token types', () => {
    const feeds = completeFeeds(graphOf(ids, mask, types), { input_ids: ints([5, 6, 7], [1, 3]) })
    expect(valuesOf(feeds.attention_mask)).toEqual([1, 1, 1])
    expect(valuesOf(feeds.token_type_ids)).toEqual([0, 0, 0])
  })

  it.each([INT64, BOOL])('of images: the mask of pixels', (type) => {
    const graph = graphOf(['pixel_values', FLOAT, ['b', 3, 'h', 'w']], ['pixel_mask', type, ['b', 'h', 'w']])
    const pixel_values = floats(FLOAT, Array(24).fill(0.5), [1, 3, 2, 4])
    const { pixel_mask } = completeFeeds(graph, { pixel_values })
    expect([pixel_mask.dims, valuesOf(pixel_mask)]).toEqual([[1, 2, 4], Array(8).fill(1)])
  })

  it('of a decoder behind an encoder: its mask, empty caches, the branch without them', () => {
    const graph = graphOf(
      ['encoder_attention_mask', INT64, ['b', 's']],
      ids,
      states,
      past('decoder'),
      past('encoder'),
      ['use_cache_branch', BOOL, [1]],
    )
    const given = {
      input_ids: ints([0, 0], [2, 1]),
      encoder_hidden_states: floats(FLOAT, Array(96).fill(0), [2, 3, 16]),
    }
    const feeds = completeFeeds(graph, given)
    expect([feeds.encoder_attention_mask.dims, valuesOf(feeds.encoder_attention_mask)]).toEqual([
      [2, 3],
      Array(6).fill(1),
    ])
    for (const part of ['decoder', 'encoder']) expect(feeds[`past_key_values.0.${part}.key`].dims).toEqual([2, 4, 0, 8])
    expect(valuesOf(feeds.use_cache_branch)).toEqual([0])
    const later = { ...given, 'past_key_values.0.decoder.key': floats(FLOAT, Array(64).fill(0), [2, 4, 1, 8]) }
    const { use_cache_branch, ...others } = completeFeeds(graph, later)
    expect(valuesOf(use_cache_branch)).toEqual([1])
    expect(Object.keys(others).sort()).toEqual([...Object.keys(later), 'encoder_attention_mask'].sort())
  })
})

describe('encoderInputs', () => {
  it('feeds tokens, mask and token types', () => {
    const tokens = { batch: 1, sequence: 3, inputIds: [5, 6, 7], attentionMask: [1, 1, 0], tokenTypeIds: [0, 1, 0] }
    const feeds = encoderInputs(graphOf(ids, mask, types)).feeds(tokens)
    expect(Object.values(feeds).map(valuesOf)).toEqual([tokens.inputIds, tokens.attentionMask, tokens.tokenTypeIds])
  })

  it('refuses what is no encoder, by name', () => {
    expect(() => encoderInputs(graphOf(ids, states))).toThrow(/no encoder of texts has: encoder_hidden_states/)
    expect(() => encoderInputs(graphOf(mask))).toThrow(/no input named input_ids/)
  })
})
