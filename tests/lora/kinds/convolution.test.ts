// Convolutions against their definition, and what they refuse; tests/lora/kinds.test.ts and gradients.test.ts compare with PEFT.

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ConfigError, ShapeError, StateError, UnsupportedError } from '../../../src/base/errors.js'
import { elementCount, type FloatArray, type Tensor } from '../../../src/base/tensor.js'
import { LoraAdapter } from '../../../src/lora/adapter.js'
import { ConvolutionLora } from '../../../src/lora/kinds/convolution.js'
import type { ConvolutionGeometry } from '../../../src/lora/kinds/windows.js'
import { requirePlain } from '../../../src/lora/requirements.js'
import { inspectAdapter } from '../../../src/peft/inspect.js'
import { dot, type Precision, random } from '../matrices.js'

function tensor(shape: number[], seed: number, precision: Precision = 'f64'): Tensor<FloatArray> {
  return { data: random(1, elementCount(shape), seed, precision).data, shape }
}

/** y[n, o, p, q] = Σ w[o, c, i, j] · x[n, c, p·stride + i·dilation − padding, …], by the definition. */
function convolve(
  x: Tensor<FloatArray>,
  w: Tensor<FloatArray>,
  stride: number[],
  padding: number[],
  dilation: number[],
): Tensor<FloatArray> {
  const [n, channels, h, width] = x.shape
  const [d, , kh, kw] = w.shape
  const size = (input: number, kernel: number, i: number) =>
    Math.floor((input + 2 * padding[i] - dilation[i] * (kernel - 1) - 1) / stride[i]) + 1
  const shape = [n, d, size(h, kh, 0), size(width, kw, 1)]
  const data = new Float64Array(elementCount(shape))
  let at = 0
  for (let b = 0; b < n; b++)
    for (let o = 0; o < d; o++)
      for (let p = 0; p < shape[2]; p++)
        for (let q = 0; q < shape[3]; q++, at++)
          for (let c = 0; c < channels; c++)
            for (let i = 0; i < kh; i++)
              for (let j = 0; j < kw; j++) {
                const row = p * stride[0] + i * dilation[0] - padding[0]
                const column = q * stride[1] + j * dilation[1] - padding[1]
                if (row < 0 || row >= h || column < 0 || column >= width) continue
                const value = x.data[((b * channels + c) * h + row) * width + column]
                data[at] += w.data[((o * channels + c) * kh + i) * kw + j] * value
              }
  return { data, shape }
}

function expectClose(got: Tensor<FloatArray>, expected: Tensor<FloatArray>, tolerance = 1e-12): void {
  expect(got.shape).toEqual(expected.shape)
  for (let i = 0; i < got.data.length; i++) {
    expect(Math.abs(got.data[i] - expected.data[i])).toBeLessThan(tolerance * (1 + Math.abs(expected.data[i])))
  }
}

/** (d 4, in 3, kernel 3×2), rank 2. */
function layer(geometry: ConvolutionGeometry = {}, precision: Precision = 'f64'): ConvolutionLora {
  const made = new ConvolutionLora(tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2), { rank: 2, alpha: 3 }, 'c')
  return made.attachBase(tensor([4, 3, 3, 2], 3, precision), geometry)
}

test('is the convolution with W + s·B·A, whatever the geometry', () => {
  const pair = (max: number, min = 0) => fc.tuple(fc.integer({ min, max }), fc.integer({ min, max }))
  fc.assert(
    fc.property(pair(3, 1), pair(3), pair(8, 3), (stride, padding, [h, w]) => {
      const made = layer({ stride, padding })
      const x = tensor([2, 3, h, w], 4)
      const expected = convolve(x, made.effectiveWeight(), stride, padding, [1, 1])
      expectClose(made.forward(x), expected)
      made.merge()
      expectClose(made.forward(x), expected)
      made.unmerge()
    }),
    { numRuns: 40 },
  )
})

test('a dilated base has a branch that is not, as in PEFT', () => {
  const made = layer({ dilation: [2, 3], padding: 'same' })
  const x = tensor([1, 3, 6, 5], 4)
  // ‘same’ pads 4 and 3, of which 1 of the columns is on the left, and the branch 2 and 1, of which none is.
  const shifted = (weight: Tensor<FloatArray>, dilation: number[], padding: number[], cut: number) => {
    const { data, shape } = convolve(x, weight, [1, 1], padding, dilation)
    const [n, d, rows, columns] = shape
    const kept = Array.from(data).filter((_, at) => at % columns >= cut && at % columns < cut + 5)
    return { data: Float64Array.from(kept), shape: [n, d, rows, 5] }
  }
  const base = shifted(made.baseWeight!, [2, 3], [2, 2], 1)
  const branch = shifted(made.delta(), [1, 1], [1, 1], 1)
  expectClose(made.forward(x), { data: base.data.map((value, i) => value + branch.data[i]), shape: base.shape })
  expect(() => made.merge()).toThrow('c.merge: PEFT’s A is not dilated like this base')
  expect(() => layer({ dilation: 2 }).forward(x)).toThrow(UnsupportedError)
  expect(() => layer({ dilation: 2, padding: 2 }).forward(x)).toThrow(
    /A is not dilated.*expected \(6, 7\), got \(8, 8\)/,
  )
})

test('merging is undone bit for bit, in f32 too', () => {
  const made = layer({}, 'f32')
  const before = made.baseWeight!.data.slice()
  made.merge()
  expect(made.baseWeight!.data).not.toEqual(before)
  expect(() => made.attachBase(tensor([4, 3, 3, 2], 5))).toThrow(StateError)
  made.weightB.data.fill(7)
  made.unmerge()
  expect(made.baseWeight!.data).toEqual(before)
  expect(() => made.unmerge()).toThrow('c.unmerge: not merged')
})

test('a new layer starts from its base, in any number of groups', () => {
  for (const groups of [1, 2]) {
    const weight = tensor([4, 4 / groups, 3, 2], 3)
    const geometry = { stride: 2, groups }
    const bare = new ConvolutionLora(tensor([2, 4, 3, 2], 1), tensor([4, 2 / groups, 1, 1], 2)).attachBase(weight, {
      stride: 2,
    })
    bare.weightB.data.fill(0)
    const x = tensor([2, 4, 7, 6], 4)
    for (const kind of [{}, { useDora: true }, { loraBias: true }]) {
      const config = { rank: 2, init: 'kaiming-uniform', dropout: 0.5, ...kind } as const
      const made = ConvolutionLora.ofBase(weight, geometry, config, 'c')
      expect([made.groups, made.channels, made.isTraining]).toEqual([groups, 4, true])
      expect([made.weightA.shape, made.weightB.shape]).toEqual([bare.weightA.shape, bare.weightB.shape])
      const largest = Math.max(...made.weightA.data.map(Math.abs))
      expect(largest).toBeLessThan(1 / Math.sqrt(24))
      expect(largest).toBeGreaterThan(0.5 / Math.sqrt(24))
      expectClose(made.forward(x), bare.forward(x))
      expect(ConvolutionLora.ofBase(weight, geometry, config, 'c').weightA).toEqual(made.weightA)
    }
  }
  const of = (config: object, groups?: number) => () =>
    ConvolutionLora.ofBase(tensor([4, 2, 3], 1), { groups }, config, 'c')
  expect(of({ rank: 3 }, 2)).toThrow('c.groups: the rank is not a multiple of the groups')
  expect(of({ rank: 5 })).toThrow(ConfigError)
  expect(of({ rank: 3 }, 3)).toThrow(ShapeError) // 4 outputs
})

test('dropout is on in training alone', () => {
  const adapter = new LoraAdapter({ rank: 2, dropout: 0.5 })
  const made = adapter.addConvolutionLayer('c', tensor([4, 3, 3, 2], 3), { padding: 1 })
  made.weightB.data.fill(0.5)
  const x = tensor([1, 3, 5, 5], 4)
  expect(made.forward(x)).not.toEqual(made.forward(x))
  adapter.eval()
  const exact = made.forward(x)
  expect(made.forward(x)).toEqual(exact)
  expect(adapter.train().get('c', 'convolution')!.forward(x)).not.toEqual(exact)
  made.merge()
  expectClose(made.forward(x), exact)
})

test('gradients agree with central differences', () => {
  const kinds = [
    { config: {}, vectors: {} },
    { config: { loraBias: true }, vectors: { biasB: [0.5, -1, 2, 0.3] } },
  ]
  for (const { config, vectors } of kinds) {
    for (const groups of [1, 2]) {
      const [a, b] = [tensor([2, 4, 2, 2], 1), tensor([4, 2 / groups, 1, 1], 2)]
      const w = tensor([4, 4 / groups, 2, 2], 3)
      const x = tensor([2, 4, 3, 4], 4)
      const make = () =>
        new ConvolutionLora(a, b, { rank: 2, alpha: 3, ...config }, 'c', vectors).attachBase(w, {
          stride: [1, 2],
          padding: [0, 1],
        })
      const made = make()
      const y = made.forward(x)
      const g = tensor([...y.shape], 5)
      const flat = ({ data }: Tensor<FloatArray>) => ({ data, shape: [1, data.length] as const })
      const objective = () => dot(flat(make().forward(x)), flat(g))
      const gradients = made.backward(g)
      for (const [gradient, parameter] of [
        [gradients.weightA, a],
        [gradients.weightB, b],
        [gradients.input, x],
      ]) {
        expect(gradient.shape).toEqual(parameter.shape)
        for (let i = 0; i < parameter.data.length; i++) {
          const old = parameter.data[i]
          parameter.data[i] = old + 1e-5
          const up = objective()
          parameter.data[i] = old - 1e-5
          const down = objective()
          parameter.data[i] = old
          expect(Math.abs(gradient.data[i] - (up - down) / 2e-5)).toBeLessThan(1e-7)
        }
      }
    }
  }
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

  test('a base and a geometry that do not fit', () => {
    const made = layer()
    expect(() => made.attachBase(tensor([4, 3, 2, 3], 1))).toThrow('c.baseWeight: wrong shape; expected (4, 3, 3, 2)')
    const attach = (geometry: ConvolutionGeometry) => () => made.attachBase(tensor([4, 3, 3, 2], 1), geometry)
    expect(attach({ stride: 0 })).toThrow(ConfigError)
    expect(attach({ stride: [1, 1, 1] })).toThrow(
      'c.stride: not valid; expected an integer of at least 1, or 2 of them',
    )
    expect(attach({ padding: -1 })).toThrow(ConfigError)
    expect(attach({ dilation: 1.5 })).toThrow(ConfigError)
    expect(attach({ padding: 'same', stride: 2 })).toThrow('c.padding: ‘same’ works only with stride 1')
  })

  test('an input that does not fit, and work without a base or a forward', () => {
    const made = layer()
    expect(() => made.forward(tensor([1, 2, 5, 5], 1))).toThrow('c.input: wrong shape; expected (n, 3, h, w)')
    expect(() => made.forward(tensor([1, 3, 5], 1))).toThrow(ShapeError)
    expect(() => made.forward(tensor([1, 3, 2, 5], 1))).toThrow(
      'c.input: the kernel is larger than the padded input; expected at least (3, 2), got (2, 5)',
    )
    expect(() => made.backward(tensor([1, 4, 3, 4], 1))).toThrow('c.backward: there was no forward()')
    made.forward(tensor([1, 3, 5, 5], 1))
    expect(() => made.backward(tensor([1, 4, 3, 3], 1))).toThrow('c.gradOutput: wrong shape; expected (1, 4, 3, 4)')
    made.merge()
    expect(() => made.backward(tensor([1, 4, 3, 4], 1))).toThrow('c.backward: not while merged')
    const bare = new ConvolutionLora(tensor([2, 3, 3, 2], 1), tensor([4, 2, 1, 1], 2))
    expect(() => bare.forward(tensor([1, 3, 5, 5], 1))).toThrow('ConvolutionLora.forward: the layer has no base weight')
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
  expect(() => made.forward(nothing)).toThrow('c.input: not a tensor')
  made.forward(tensor([1, 3, 5, 5], 4))
  expect(() => made.backward(nothing)).toThrow('c.gradOutput: not a tensor')
  expect(() => ConvolutionLora.ofBase(nothing, {}, { rank: 2 }, 'c')).toThrow('c.baseWeight: not a tensor')
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
