// Convolutions compared with their definition, and errors. tests/lora/kinds.test.ts and gradients.test.ts compare them
// with PEFT.

import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  ConvolutionLora,
  type FloatArray,
  LoraAdapter,
  ShapeError,
  type Tensor,
} from '../../../src/api/node.js'
import { elementCount } from '../../../src/core/base/tensor.js'
import { inspectAdapter } from '../../../src/lora/peft/inspect.js'
import { requireHandled } from '../../../src/lora/requirements.js'
import { convolve } from '../../convolve.js'
import { random } from '../matrices.js'

function tensor(shape: number[], seed: number): Tensor<FloatArray> {
  return { data: random(1, elementCount(shape), seed).data, shape }
}

/** (d 4, in 3, kernel 3×2), rank 2. */
function layer(): ConvolutionLora {
  return new ConvolutionLora(tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2), { rank: 2, alpha: 3 }, 'c')
}

test('its change is that of two convolutions, one after the other', () => {
  const made = layer()
  const x = tensor([2, 3, 7, 6], 4)
  const once = (weight: Tensor<FloatArray>, input = x) => convolve(input, weight, [1, 1], [0, 0], [1, 1])
  const branch = once(made.weightB, once(made.weightA))
  const weight = tensor([4, 3, 3, 2], 3)
  const [whole, base] = [once(made.effectiveWeight(weight)), once(weight)]
  whole.data.forEach((value, i) => {
    expect(Math.abs(value - base.data[i] - made.scaling * branch.data[i])).toBeLessThan(1e-12)
  })
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

  test('a base that does not fit', () => {
    expect(() => layer().effectiveWeight(tensor([4, 3, 2, 3], 1))).toThrow(
      'c.effectiveWeight: wrong shape; expected (4, 3, 3, 2)',
    )
    const grouped = new ConvolutionLora(tensor([2, 4, 3], 1), tensor([4, 1, 1], 2), {}, 'g')
    expect(() => grouped.effectiveWeight(tensor([4, 2, 3], 3))).toThrow(
      'g.effectiveWeight: an adapted convolution of 2 groups cannot be merged',
    )
  })
})

test('refuses what is no tensor, by the name of the argument', () => {
  const [a, b] = [tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2)]
  const nothing = undefined as unknown as Tensor<FloatArray>
  expect(() => new ConvolutionLora(nothing, b, { rank: 2 }, 'c')).toThrow('c.weightA: not a tensor')
  expect(() => new ConvolutionLora(a, { ...b, data: new Float64Array(3) }, { rank: 2 })).toThrow(
    'ConvolutionLora.weightB: data and shape disagree; expected (4, 2, 1, 1) elements, got 3',
  )
  expect(() => layer().effectiveWeight(nothing)).toThrow('c.effectiveWeight: not a tensor')
})

test('is a part of an adapter', async () => {
  const adapter = new LoraAdapter({ rank: 2, alpha: 3 })
  adapter.addLayer('l', random(3, 4, 1))
  const c = adapter.addConvolution('c', tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2))
  expect(() => adapter.addFactors('c', random(2, 3, 1), random(3, 2, 1))).toThrow(ConfigError)
  expect(adapter.parts().map(({ name, kind }) => [name, kind])).toEqual([
    ['l', 'linear'],
    ['c', 'convolution'],
  ])
  expect(() => requireHandled(adapter, ['linear'], 'training')).toThrow(
    'c: adapted convolutions are not implemented for training',
  )
  expect(c.trainableParams()).toBe(2 * 18 + 4 * 2)
  expect(adapter.totalTrainableParams()).toBe(2 * (3 + 4) + c.trainableParams())
  expect([c.shape, c.rank, c.totalParams()]).toEqual([[4, 3, 3, 2], 2, 44 + 72])
  expect((await inspectAdapter(adapter)).layers[1]).toMatchObject({
    name: 'c',
    kind: 'convolution',
    d: 4,
    k: 18,
    rank: 2,
  })
})
