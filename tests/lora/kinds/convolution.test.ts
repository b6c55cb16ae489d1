// Convolutions against their definition, and what they refuse; tests/lora/kinds.test.ts and gradients.test.ts compare
// with PEFT.

import { describe, expect, test } from 'vitest'
import { ConfigError, ShapeError, StateError } from '../../../src/base/errors.js'
import { elementCount, type FloatArray, type Tensor } from '../../../src/base/tensor.js'
import { LoraAdapter } from '../../../src/lora/adapter.js'
import { ConvolutionLora } from '../../../src/lora/kinds/convolution.js'
import { requirePlain } from '../../../src/lora/requirements.js'
import { inspectAdapter } from '../../../src/peft/inspect.js'
import { convolve } from '../../convolve.js'
import { type Precision, random } from '../matrices.js'

function tensor(shape: number[], seed: number, precision: Precision = 'f64'): Tensor<FloatArray> {
  return { data: random(1, elementCount(shape), seed, precision).data, shape }
}

/** (d 4, in 3, kernel 3×2), rank 2. */
function layer(precision: Precision = 'f64'): ConvolutionLora {
  const made = new ConvolutionLora(tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2), { rank: 2, alpha: 3 }, 'c')
  return made.attachBase(tensor([4, 3, 3, 2], 3, precision))
}

test('its change is that of two convolutions, one after the other', () => {
  const made = layer()
  const x = tensor([2, 3, 7, 6], 4)
  const once = (weight: Tensor<FloatArray>, input = x) => convolve(input, weight, [1, 1], [0, 0], [1, 1])
  const branch = once(made.weightB, once(made.weightA))
  const [whole, base] = [once(made.effectiveWeight()), once(made.baseWeight!)]
  whole.data.forEach((value, i) => {
    expect(Math.abs(value - base.data[i] - made.scaling * branch.data[i])).toBeLessThan(1e-12)
  })
})

test('merging is undone bit for bit, in f32 too', () => {
  const made = layer('f32')
  const before = made.baseWeight!.data.slice()
  made.merge()
  expect(made.baseWeight!.data).not.toEqual(before)
  expect(() => made.attachBase(tensor([4, 3, 3, 2], 5))).toThrow(StateError)
  made.weightB.data.fill(7)
  made.unmerge()
  expect(made.baseWeight!.data).toEqual(before)
  expect(() => made.unmerge()).toThrow('c.unmerge: not merged')
})

describe('refuses', () => {
  test('factors that are none of a convolution', () => {
    const make = (a: number[], b: number[], config = {}) => {
      return () => new ConvolutionLora(tensor(a, 1), tensor(b, 2), config, 'c')
    }
    expect(make([2, 3, 3], [4, 2])).toThrow('c: not the factors of a convolution')
    expect(make([2, 3, 3], [4, 2, 2])).toThrow(ShapeError)
    expect(make([2, 3], [4, 2])).toThrow(ShapeError)
    expect(make([4, 3, 3], [4, 3, 1])).toThrow(ShapeError)
    expect(make([4, 3, 3], [4, 2, 1])).toThrow(ShapeError) // 2 groups of 3 channels
    expect(make([4, 4, 3], [5, 2, 1])).toThrow(ShapeError)
    expect(make([2, 3, 3], [4, 2, 1], { rank: 3 })).toThrow(ShapeError)
    expect(make([2, 3, 3], [4, 2, 1], { useDora: true })).toThrow('c.magnitude: missing')
    expect(make([2, 4, 3], [4, 1, 1], { useDora: true })).toThrow('c.magnitude: missing')
  })

  test('a base that does not fit, and work without one', () => {
    expect(() => layer().attachBase(tensor([4, 3, 2, 3], 1))).toThrow(
      'c.baseWeight: wrong shape; expected (4, 3, 3, 2)',
    )
    const bare = new ConvolutionLora(tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2))
    expect(() => bare.merge()).toThrow(StateError)
  })
})

test('refuses what is no tensor, by the name of the argument', () => {
  const [a, b, w] = [tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2), tensor([4, 3, 3, 2], 3)]
  const made = new ConvolutionLora(a, b, { rank: 2 }, 'c').attachBase(w)
  const nothing = undefined as unknown as Tensor<FloatArray>
  expect(() => new ConvolutionLora(nothing, b, { rank: 2 }, 'c')).toThrow('c.weightA: not a tensor')
  expect(() => new ConvolutionLora(a, { ...b, data: new Float64Array(3) }, { rank: 2 })).toThrow(
    'ConvolutionLora.weightB: data and shape disagree; expected (4, 2, 1, 1) elements, got 3',
  )
  expect(() => made.attachBase(nothing)).toThrow('c.baseWeight: not a tensor')
})

test('is a part of an adapter', async () => {
  const adapter = new LoraAdapter({ rank: 2, alpha: 3 })
  adapter.addLayer('l', random(3, 4, 1))
  const c = adapter.addConvolution('c', tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2))
  c.attachBase(tensor([4, 3, 3, 2], 3))
  expect(() => adapter.addFactors('c', random(2, 3, 1), random(3, 2, 1))).toThrow(ConfigError)
  expect(adapter.parts().map(({ name, kind }) => [name, kind])).toEqual([
    ['l', 'linear'],
    ['c', 'convolution'],
  ])
  expect(() => requirePlain(adapter, 'training')).toThrow('c: adapted convolutions are not implemented for training')
  expect(c.trainableParams()).toBe(2 * 18 + 4 * 2)
  expect(adapter.totalTrainableParams()).toBe(2 * (3 + 4) + c.trainableParams())
  expect(adapter.summary().parts[1]).toEqual({
    name: 'c',
    kind: 'convolution',
    shape: [4, 3, 3, 2],
    rank: 2,
    trainableParams: 44,
    totalParams: 44 + 72,
    compressionRatio: 44 / 116,
    merged: false,
  })
  expect((await inspectAdapter(adapter)).layers[1]).toMatchObject({
    name: 'c',
    kind: 'convolution',
    d: 4,
    k: 18,
    rank: 2,
  })
  adapter.mergeAll()
  expect([adapter.layer('l').merged, c.merged]).toEqual([true, true])
  adapter.unmergeAll()
  expect(c.merged).toBe(false)
  const grouped = adapter.addConvolution('g', tensor([2, 4, 3], 1), tensor([4, 1, 1], 2))
  grouped.attachBase(tensor([4, 2, 3], 3))
  expect(() => adapter.mergeAll()).toThrow('g.merge: an adapted convolution of 2 groups cannot be merged')
  expect([adapter.layer('l').merged, c.merged, grouped.merged]).toEqual([false, false, false])
})
