// An adapter is an ordered map of parts of all kinds.

import { expect, test } from 'vitest'
import { ConfigError, LoraAdapter, MismatchError, ShapeError, UnsupportedError } from '../../src/api/node.js'
import { tensorsOf } from '../../src/lora/part.js'
import { random } from './matrices.js'

const plain = (value: unknown) => value as never

const values = (...shape: number[]) => {
  const count = shape.reduce((product, dim) => product * dim, 1)
  return { data: Float32Array.from({ length: count }, (_, i) => Math.sin(i + 1)), shape }
}

/** Makes an adapter with a part of every kind, in mixed order. */
function everyKind(): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 2, alpha: 4 })
  adapter.addReplacement('classifier.weight', values(3, 5))
  adapter.addExperts('mlp.experts.down_proj', random(6, 5, 1), random(4, 6, 2))
  adapter.addTokenRows('embed', [7, 2], values(2, 4))
  adapter.addEmbedding('embed', random(2, 10, 3), random(4, 2, 4))
  adapter.addLayer('q_proj', random(4, 6, 5))
  adapter.addConvolution('patch', values(2, 3, 2, 2), values(4, 2, 1, 1))
  adapter.addReplacement('embed.weight', values(10, 4), { isTrained: false })
  return adapter
}

test('names, size, iteration and access cover all kinds, in the order of adding', () => {
  const adapter = everyKind()
  const expected = [
    ['classifier.weight', 'replacement', 'classifier', [3, 5]],
    ['mlp.experts.down_proj', 'parameter', 'mlp.experts', [3, 4, 5]],
    ['embed[tokens]', 'token-rows', 'embed', [2, 4]],
    ['embed', 'embedding', 'embed', [10, 4]],
    ['q_proj', 'linear', 'q_proj', [4, 6]],
    ['patch', 'convolution', 'patch', [4, 3, 2, 2]],
    ['embed.weight', 'replacement', 'embed', [10, 4]],
  ]
  expect(adapter.parts().map(({ name, kind, module, shape }) => [name, kind, module, shape])).toEqual(expected)
  expect(adapter.names()).toEqual(expected.map(([name]) => name))
  expect([...adapter]).toEqual(adapter.parts().map((part) => [part.name, part]))
  expect(adapter.size).toBe(7)
  for (const [name, part] of adapter) {
    expect(adapter.has(name)).toBe(true)
    expect(adapter.get(name)).toBe(part)
    expect(adapter.get(name, part.kind)).toBe(part)
  }
  expect(adapter.get('embed', 'linear')).toBeUndefined()
  expect(adapter.parts('embedding', 'linear').map(({ name }) => name)).toEqual(['embed', 'q_proj'])
  // The kind narrows the type.
  expect(adapter.parts('embedding')[0].vocabulary).toBe(10)
  expect(adapter.get('embed[tokens]', 'token-rows')?.indices).toEqual([7, 2])
})

test('an adapter of embeddings alone is not empty', () => {
  const adapter = new LoraAdapter({ rank: 2 })
  adapter.addEmbedding('embed', random(2, 10, 3), random(4, 2, 4))
  expect([adapter.size, adapter.names(), [...adapter].length]).toEqual([1, ['embed'], 1])
})

test('a linear layer is asked for by name; a part of another kind is named as such', () => {
  const adapter = everyKind()
  expect(() => adapter.layer('embed')).toThrow(MismatchError)
  expect(() => adapter.layer('embed')).toThrow('expected a linear layer, got embedding')
})

test('all parts have tensors by role, and count what is trained and what there is', () => {
  const adapter = everyKind()
  const roles = adapter.parts().map((part) => tensorsOf<{ shape: readonly number[] }>(part).map(([role]) => role))
  expect(roles[0]).toEqual(['weight'])
  expect(roles[3]).toEqual(['weightA', 'weightB'])
  const counts = adapter.parts().map((part) => [part.trainableParams(), part.totalParams()])
  expect(counts).toEqual([
    [15, 15],
    [3 * 2 * (4 + 5), 3 * 2 * (4 + 5) + 60],
    [8, 8],
    [2 * (10 + 4), 2 * (10 + 4) + 40],
    [2 * (4 + 6), 2 * (4 + 6) + 24],
    [2 * 12 + 4 * 2, 2 * 12 + 4 * 2 + 48],
    [0, 40], // the base's own values, saved along
  ])
  expect(adapter.totalTrainableParams()).toBe(counts.reduce((sum, [own]) => sum + own, 0))
})

test('names are taken once, whatever the kind', () => {
  const adapter = everyKind()
  expect(() => adapter.addFactors('classifier.weight', random(2, 3, 1), random(3, 2, 1))).toThrow(ConfigError)
  expect(() => adapter.addTokenRows('embed', [1], values(1, 4))).toThrow(/^embed\[tokens\]: .*already/)
  expect(() => adapter.addReplacement('weight', values(2))).toThrow('weight: not the full name of a tensor')
  expect(adapter.remove('classifier.weight')).toBe(true)
  expect(adapter.remove('classifier.weight')).toBe(false)
  adapter.addReplacement('classifier.weight', values(2, 2))
  expect(adapter.names().at(-1)).toBe('classifier.weight')
})

test('merging in memory is for linear layers alone', () => {
  const adapter = everyKind()
  for (const layer of adapter.parts('linear')) layer.merge()
  expect(adapter.layer('q_proj').merged).toBe(true)
  adapter.dispose()
  expect(adapter.layer('q_proj').baseWeight).toBeUndefined()
})

test('values are the part’s own: copied, edited in place, and encoded as they are then', () => {
  const given = values(2, 2)
  const part = new LoraAdapter().addReplacement('head.weight', given)
  part.weight.data[0] = 5
  expect(given.data[0]).not.toBe(5)
  expect(new Float32Array(part.data.slice().buffer)[0]).toBe(5)
  expect(part.dtype).toBe('fp32')
  const half = new LoraAdapter().addReplacement('head.weight', {
    dtype: 'bf16',
    shape: [2],
    data: new Uint8Array([0x80, 0x3f, 0, 0x40]),
  })
  expect([...half.weight.data]).toEqual([1, 2])
  half.weight.data[1] = 3
  expect([...half.data]).toEqual([0x80, 0x3f, 0x40, 0x40])
  const whole = new LoraAdapter().addReplacement('head.ids', { dtype: 'I64', shape: [1], data: new Uint8Array(8) })
  expect(() => whole.weight).toThrow(UnsupportedError)
})

test('values that do not fit are refused', () => {
  const adapter = new LoraAdapter()
  expect(() => adapter.addReplacement('head.weight', { data: new Float32Array(3), shape: [2, 2] })).toThrow(ShapeError)
  expect(() => adapter.addTokenRows('e', [1, 1], values(2, 4))).toThrow(ConfigError)
  expect(() => adapter.addTokenRows('e', [-1], values(1, 4))).toThrow(ConfigError)
  expect(() => adapter.addTokenRows('e', [1, 2], values(3, 4))).toThrow('expected (2, features), got (3, 4)')
  expect(() => adapter.addTokenRows('', [1], values(1, 4))).toThrow('a layer needs a name')
  expect(adapter.size).toBe(0)
})

test('what plain JavaScript may hand over ends in an error of ours', () => {
  const adapter = new LoraAdapter()
  for (const bad of [undefined, null, 1, 'x', [], {}, { data: [1], shape: [1] }, { data: new Float32Array(1) }]) {
    expect(() => adapter.addReplacement('head.weight', plain(bad))).toThrow(ConfigError)
    expect(() => adapter.addTokenRows('e', [1], plain(bad))).toThrow(ConfigError)
    expect(() =>
      adapter.addTokenRows('e', plain(bad === null || typeof bad !== 'object' ? bad : ['a']), values(1, 4)),
    ).toThrow(ConfigError)
  }
  for (const bad of [undefined, null, 1, {}]) {
    expect(() => adapter.addReplacement(plain(bad), values(1))).toThrow(ConfigError)
    expect(() => adapter.addTokenRows(plain(bad), [1], values(1, 4))).toThrow(ConfigError)
  }
  expect(() => adapter.addReplacement('head.weight', values(1), plain({ trained: true }))).toThrow(/trained: /)
  expect(() => adapter.addReplacement('head.weight', values(1), plain({ isTrained: 1 }))).toThrow(ConfigError)
  expect(adapter.size).toBe(0)
})
