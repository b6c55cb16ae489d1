import { describe, expect, it } from 'vitest'
import { UnsupportedError } from '../../../src/api/node.js'
import { tokenInputs } from '../../../src/model/inputs/tokens.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { valueInfo } from '../../../src/onnx/view/value-info.js'
import { addInput, addOutput, DataType, emptyGraph, valuesOf } from '../../onnx/toolkit.js'
import { MODELS, openModel } from '../golden.js'

/** Two rows, the first padded on the right, the second on the left. */
const tokens = {
  batch: 2,
  sequence: 4,
  inputIds: [7, 8, 9, 0, 0, 0, 5, 6],
  attentionMask: [1, 1, 1, 0, 0, 0, 1, 1],
}

function graphWith(...inputs: [name: string, type: DataType, dims: (number | string)[]][]): Graph {
  const graph = emptyGraph(17)
  for (const [name, type, dims] of inputs) addInput(graph, name, type, dims)
  addOutput(graph, 'logits', DataType.FLOAT)
  return graph
}

const ids: Parameters<typeof graphWith>[0] = ['input_ids', DataType.INT64, ['batch', 'sequence']]

describe('roles', () => {
  it.each<[string, DataType, (string | number)[], number[], number[]]>([
    ['input_ids', DataType.INT64, ['b', 's'], tokens.inputIds, [2, 4]],
    ['attention_mask', DataType.INT64, ['b', 's'], tokens.attentionMask, [2, 4]],
    ['attention_mask', DataType.INT32, ['b', 's'], tokens.attentionMask, [2, 4]],
    ['position_ids', DataType.INT64, ['b', 's'], [0, 1, 2, 2, 0, 0, 0, 1], [2, 4]],
    ['token_type_ids', DataType.INT64, ['b', 's'], [0, 0, 0, 0, 0, 0, 0, 0], [2, 4]],
    ['cache_position', DataType.INT64, ['s'], [0, 1, 2, 3], [4]],
    ['num_logits_to_keep', DataType.INT64, [], [0], []],
    ['seqlens_k', DataType.INT32, ['b'], [2, 1], [2]],
    ['seqlens_k', DataType.INT32, ['b', 1], [2, 1], [2, 1]],
    ['total_sequence_length', DataType.INT32, [], [4], []],
    ['past_sequence_length', DataType.INT32, [1], [0], [1]],
  ])('%s', (name, type, dims, expected, shape) => {
    const inputs = tokenInputs(name === 'input_ids' ? graphWith(ids) : graphWith(ids, [name, type, dims]))
    const feed = inputs.feeds(tokens)[name]
    expect(valuesOf(feed)).toEqual(expected)
    expect(feed.dims).toEqual(shape)
    expect(feed.type).toBe(type === DataType.INT64 ? 'int64' : 'int32')
  })

  it('go on after what is in the cache', () => {
    const inputs = tokenInputs(
      graphWith(
        ids,
        ['attention_mask', DataType.INT64, ['b', 't']],
        ['position_ids', DataType.INT64, ['b', 's']],
        ['cache_position', DataType.INT64, ['s']],
      ),
    )
    const feeds = inputs.feeds({ batch: 1, sequence: 1, past: 3, inputIds: [4], attentionMask: [0, 1, 1, 1] })
    expect(valuesOf(feeds.attention_mask)).toEqual([0, 1, 1, 1])
    expect(valuesOf(feeds.position_ids)).toEqual([2])
    expect(valuesOf(feeds.cache_position)).toEqual([3])
  })
})

describe('the cache', () => {
  it.each<[string, string]>([
    ['llama-optimum', 'past_key_values.1.value'],
    ['llama-genai', 'past_key_values.1.value'],
    ['llama-genai-rotary', 'past_key_values.1.value'],
  ])('of %s', async (name, last) => {
    const model = await openModel(`${MODELS}/${name}`)
    const { cache, emptyCache } = tokenInputs(new Graph(model.proto))
    expect(cache).toHaveLength(4)
    expect(cache.find(({ past }) => past === last)).toEqual({
      past: last,
      present: 'present.1.value',
      type: 'float32',
      axis: 2,
      dims: [undefined, 2, undefined, 16],
      isOfEncoder: false,
    })
    expect(emptyCache(3)[last]).toEqual({ type: 'float32', data: new Float32Array(0), dims: [3, 2, 0, 16] })
    await model.close()
  })

  it('is empty for a model without one', async () => {
    const model = await openModel(`${MODELS}/llama-dynamo`)
    const { cache, emptyCache } = tokenInputs(new Graph(model.proto))
    expect(cache).toEqual([])
    expect(emptyCache(2)).toEqual({})
    await model.close()
  })

  const past = (dims: (number | string)[]) => graphWith(ids, ['past_key_values.0.key', DataType.FLOAT, dims])

  it.each<[string, Graph, RegExp]>([
    ['of another rank', past(['b', 4, 'p']), /the cache past_key_values\.0\.key cannot be told; .*got \(\?, 4, \?\)/],
    ['without a successor', past(['b', 4, 'p', 8]), /no output continues this cache; expected present\.0\.key/],
    ['whose heads have an unknown size', past(['b', 4, 'p', 'h']), /sizes of the cache past_key_values\.0\.key cannot/],
  ])('%s is refused', (_, graph, message) => {
    expect(() => tokenInputs(graph)).toThrow(UnsupportedError)
    expect(() => tokenInputs(graph)).toThrow(message)
  })

  const readBy = (graph: Graph, operator: string, name: string) => {
    const g = new Builder(graph, name)
    // Models in half precision convert the cache first.
    const value = name.endsWith('mamba') ? g.cast('past_key_values.0.key', DataType.FLOAT) : 'past_key_values.0.key'
    g.op(operator, [value])
    return graph
  }

  it.each(['com.microsoft:PagedAttention', 'com.example:FlashAttention', 'Unheard'])(
    'that only %s reads is refused by module and operator, if its heads have no size',
    (operator) => {
      const graph = readBy(past(['b', 4, 'p', 'h']), operator, '/model/layers.0/self_attn')
      expect(() => tokenInputs(graph)).toThrow(
        `model.layers.0.self_attn: the sizes of the cache past_key_values.0.key cannot be told from the operator ${operator}; expected an input (batch, heads, past length, head size)`,
      )
    },
  )

  it.each(['directly', 'after a Cast'])('that GroupQueryAttention reads %s takes its sizes from the query', (how) => {
    const attended = (width: number | string) => {
      const graph = graphWith(ids, ['past_key_values.0.key', DataType.FLOAT16, ['b', 2, 'p', 'h']])
      addOutput(graph, 'present.0.key', DataType.FLOAT)
      graph.valueInfo.push(valueInfo('query', DataType.FLOAT, ['b', 's', width]))
      const g = new Builder(graph, '/model/layers.0/self_attn')
      const own = how === 'directly' ? 'past_key_values.0.key' : g.cast('past_key_values.0.key', DataType.FLOAT)
      const attributes = { num_heads: 4, kv_num_heads: 2 }
      g.op('com.microsoft:GroupQueryAttention', ['query', 'query', 'query', own], attributes)
      return graph
    }
    expect(tokenInputs(attended(32)).cache[0].dims).toEqual([undefined, 2, undefined, 8])
    expect(() => tokenInputs(attended('w'))).toThrow(
      'model.layers.0.self_attn: the sizes of the cache past_key_values.0.key cannot be told from the operator com.microsoft:GroupQueryAttention, because nothing tells the width of its query query; expected an input (batch, heads, past length, head size) with numbers for the second and last, got (?, 2, ?, ?)',
    )
  })

  it.each([
    ['Mul', undefined],
    ['Einsum', undefined],
    ['Unsqueeze', undefined],
    ['Scan', undefined],
    ['com.microsoft:LinearAttention', undefined],
    ['Concat', 2],
    ['ScatterND', 2],
    ['Attention', 2],
    ['com.microsoft:GroupQueryAttention', 2],
  ])('of a fixed size that %s reads has rows on the axis %s', (operator, axis) => {
    for (const module of ['/model/layers.0', '/model/layers.0/mamba']) {
      const graph = readBy(past(['b', 8, 4, 16]), operator, module)
      addOutput(graph, 'present.0.key', DataType.FLOAT)
      const { cache, emptyCache } = tokenInputs(graph)
      expect(cache[0]).toMatchObject({ axis, dims: [undefined, 8, axis === undefined ? 4 : undefined, 16] })
      expect(emptyCache(3)['past_key_values.0.key'].dims).toEqual([3, 8, axis === undefined ? 4 : 0, 16])
    }
  })
})

describe('models of another kind', () => {
  it('without token ids are refused', () => {
    const graph = graphWith(['pixel_values', DataType.FLOAT, ['b', 3, 'h', 'w']])
    expect(() => tokenInputs(graph)).toThrow(/inputs of unknown meaning: pixel_values/)
  })

  it('with inputs of unknown meaning are refused, naming them', () => {
    const graph = graphWith(ids, ['encoder_hidden_states', DataType.FLOAT, ['b', 's', 64]])
    expect(() => tokenInputs(graph)).toThrow(/unknown meaning: encoder_hidden_states; expected a causal language model/)
    expect(() => tokenInputs(graphWith(ids, ['constructor', DataType.INT64, ['b']]))).toThrow(/meaning: constructor;/)
    expect(() => tokenInputs(graphWith(['attention_mask', DataType.INT64, ['b', 's']]))).toThrow(
      /no input named input_ids/,
    )
  })
})
