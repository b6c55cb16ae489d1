import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  EmbeddingLora,
  LoraLayer,
  type Matrix,
  type MatrixLike,
  NumericError,
  ShapeError,
  StateError,
} from '../../src/api/node.js'
import {
  adapted,
  dot,
  maxDifference,
  multiply,
  type Precision,
  precisions,
  random,
  rows,
  trained,
  transpose,
} from './matrices.js'

const TOLERANCE: Record<Precision, number> = { f32: 2e-5, f64: 1e-12 }

describe('a new layer', () => {
  test('changes nothing: B is zero, the effective weight is the base weight', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 }), precisions, (d, k, precision) => {
        const base = random(d, k, 3, precision)
        const layer = new LoraLayer(base, { rank: Math.min(d, k) })
        expect(layer.weightB.data.every((value) => value === 0)).toBe(true)
        expect(layer.weightA.data.some((value) => value !== 0)).toBe(true)
        expect(layer.delta().data.every((value) => value === 0)).toBe(true)
        expect(layer.effectiveWeight()).toEqual(base)
        expect(layer.merged).toBe(false)
        expect(layer.isTraining).toBe(true)
      }),
    )
  })

  test('has the shapes and the counts of the paper', () => {
    const layer = new LoraLayer(random(6, 10, 1), { rank: 4, alpha: 2 })
    expect(layer.weightA.shape).toEqual([4, 10])
    expect(layer.weightB.shape).toEqual([6, 4])
    expect(layer.baseWeight?.shape).toEqual([6, 10])
    expect([layer.d, layer.k, layer.rank, layer.scaling]).toEqual([6, 10, 4, 0.5])
    expect(layer.trainableParams()).toBe(4 * 16)
    expect(layer.totalParams()).toBe(60 + 64)
    expect(layer.compressionRatio()).toBe(64 / 124)
  })

  test('takes nested arrays as f64, and keeps f32', () => {
    expect(
      new LoraLayer(
        [
          [1, 2],
          [3, 4],
        ],
        { rank: 1 },
      ).weightA.data,
    ).toBeInstanceOf(Float64Array)
    expect(new LoraLayer(random(2, 2, 1, 'f32'), { rank: 1 }).weightA.data).toBeInstanceOf(Float32Array)
  })

  test('copies the base weight: the caller’s array is never written, and can change', () => {
    const base = random(3, 4, 1)
    const before = base.data.slice()
    const layer = new LoraLayer(base, { rank: 2 })
    layer.weightB = random(3, 2, 2)
    layer.merge()
    expect(base.data).toEqual(before)
    layer.unmerge()
    base.data.fill(9)
    expect(layer.baseWeight?.data).toEqual(before)
  })

  test('refuses a rank above min(d, k), naming the layer and the maximum', () => {
    const make = () => new LoraLayer(random(3, 9, 1), { rank: 4 }, 'model.q_proj')
    expect(make).toThrow(ConfigError)
    expect(make).toThrow(
      /^model\.q_proj: the rank is too high for a weight of shape \(3, 9\); expected at most 3, got 4$/,
    )
    expect(() => LoraLayer.ofShape([3, 9], { rank: 4 }, 'x')).toThrow(/^x: .*at most 3, got 4/)
    expect(() => LoraLayer.ofShape([2.5, 9], { rank: 1 }, 'x')).toThrow(ShapeError)
  })

  test.each([
    ['no matrix', 'text' as never],
    ['ragged rows', [[1, 2], [3]]],
    ['data that do not fill the shape', { data: new Float32Array(5), shape: [2, 3] } as Matrix],
  ])('refuses %s', (_, base) => {
    expect(() => new LoraLayer(base as MatrixLike, { rank: 1 })).toThrow(ShapeError)
  })

  test('ofShape draws the same A without a base weight', () => {
    const config = { rank: 2, seed: 7 }
    const layer = LoraLayer.ofShape([4, 5], config, 'q')
    expect(layer.weightA).toEqual(new LoraLayer(random(4, 5, 1, 'f32'), config, 'q').weightA)
    expect(layer.baseWeight).toBeUndefined()
    expect(layer.isTraining).toBe(true)
  })
})

describe('forward', () => {
  test('y = x·(W + s·B·A)ᵀ, merged and not, in both precisions', () => {
    const dim = fc.integer({ min: 1, max: 8 })
    fc.assert(
      fc.property(
        dim,
        dim,
        dim,
        precisions,
        fc.boolean(),
        fc.double({ min: 0.1, max: 32, noNaN: true }),
        (n, d, k, precision, useRslora, alpha) => {
          const rank = Math.min(d, k)
          const layer = trained(d, k, { rank, alpha, useRslora }, precision)
          const x = random(n, k, 5, precision)
          const w = adapted(layer.baseWeight!, layer.weightB, layer.weightA, layer.scaling)
          const y = multiply(rows(x), transpose(w))
          const tolerance = TOLERANCE[precision] * (1 + alpha) * k * rank
          expect(maxDifference(layer.effectiveWeight(), w)).toBeLessThan(tolerance)
          expect(maxDifference(layer.forward(x), y)).toBeLessThan(tolerance)
          expect(layer.forward(x).shape).toEqual([n, d])
          layer.merge()
          expect(maxDifference(layer.forward(x), y)).toBeLessThan(tolerance)
        },
      ),
    )
  })

  test('results have the base’s precision, whatever comes in', () => {
    const layer = trained(3, 4, { rank: 2 }, 'f32')
    layer.weightA = rows(random(2, 4, 3))
    expect(layer.weightA.data).toBeInstanceOf(Float32Array)
    const y = layer.forward(rows(random(2, 4, 1)))
    const gradients = layer.backward(random(2, 3, 1, 'f64'))
    const results = [y, layer.effectiveWeight(), layer.delta(), gradients.weightA, gradients.weightB, gradients.input]
    for (const { data } of results) expect(data).toBeInstanceOf(Float32Array)
  })

  test('refuses inputs with other than k columns', () => {
    expect(() => trained().forward(random(2, 6, 1))).toThrow(
      /^LoraLayer\.input: wrong shape; expected \(2, 7\), got \(2, 6\)$/,
    )
  })

  test('does not change its input', () => {
    const x = random(3, 7, 1)
    const before = x.data.slice()
    const layer = trained(5, 7, { rank: 3, dropout: 0.5 })
    layer.forward(x)
    layer.backward(random(3, 5, 2))
    expect(x.data).toEqual(before)
  })
})

describe('merge and unmerge', () => {
  test('unmerge gives back the base bit for bit, whatever happens to A and B meanwhile', () => {
    fc.assert(
      fc.property(precisions, fc.integer(), (precision, seed) => {
        const layer = trained(4, 6, { rank: 2, alpha: 1000 }, precision, seed & 0xffff)
        const bytes = () => new Uint8Array(layer.baseWeight!.data.slice().buffer)
        const before = bytes()
        layer.merge()
        expect(bytes()).not.toEqual(before)
        layer.weightA.data.fill(1e30)
        layer.weightB.data.fill(-3)
        layer.unmerge()
        expect(bytes()).toEqual(before)
        expect(layer.merged).toBe(false)
      }),
    )
  })

  test('merged, the base weight is the effective weight, and effectiveWeight a copy of it', () => {
    const layer = trained(4, 6, { rank: 2 }, 'f32')
    const effective = layer.effectiveWeight()
    layer.merge()
    expect(layer.merged).toBe(true)
    expect(layer.baseWeight).toEqual(effective)
    expect(layer.effectiveWeight()).toEqual(effective)
    layer.effectiveWeight().data.fill(0)
    expect(layer.baseWeight).toEqual(effective)
  })

  test('can be repeated', () => {
    const layer = trained()
    const effective = layer.effectiveWeight()
    for (let i = 0; i < 3; i++) {
      layer.merge()
      expect(layer.baseWeight).toEqual(effective)
      layer.unmerge()
    }
  })

  test('twice is an error that changes nothing', () => {
    const layer = trained()
    expect(() => layer.unmerge()).toThrow(StateError)
    expect(() => layer.unmerge()).toThrow(/not merged/)
    layer.merge()
    const merged = layer.baseWeight
    expect(() => layer.merge()).toThrow(StateError)
    expect(() => layer.merge()).toThrow(/it is merged already/)
    expect(layer.baseWeight).toBe(merged)
  })

  test('a result that is not finite is refused and changes nothing', () => {
    const layer = trained(3, 4, { rank: 2 }, 'f32')
    const base = layer.baseWeight
    layer.weightA.data.fill(3e38)
    expect(() => layer.merge()).toThrow(NumericError)
    expect(layer.merged).toBe(false)
    expect(layer.baseWeight).toBe(base)
  })

  test('while merged A, B and W cannot be replaced', () => {
    const layer = trained(5, 7)
    layer.merge()
    expect(() => {
      layer.weightA = random(3, 7, 1)
    }).toThrow(/^LoraLayer\.weightA: cannot be replaced while merged\. Call unmerge\(\) first$/)
    expect(() => {
      layer.weightB = random(5, 3, 1)
    }).toThrow(StateError)
    expect(() => {
      layer.baseWeight = random(5, 7, 1)
    }).toThrow(StateError)
    expect(() => layer.attachBase(random(5, 7, 1))).toThrow(StateError)
  })
})

describe('public fields', () => {
  test.each(['weightA', 'weightB', 'baseWeight'] as const)('%s: the shape is checked on assignment', (field) => {
    const layer = trained(5, 7)
    const before = layer[field]
    expect(() => {
      layer[field] = random(2, 2, 1)
    }).toThrow(ShapeError)
    expect(() => {
      layer[field] = random(2, 2, 1)
    }).toThrow(new RegExp(`^LoraLayer\\.${field}: wrong shape; expected \\(\\d, \\d\\), got \\(2, 2\\)$`))
    expect(layer[field]).toBe(before)
  })

  test('assignment copies, and data can be edited in place', () => {
    const layer = trained(5, 7)
    const a = random(3, 7, 8)
    layer.weightA = a
    a.data.fill(0)
    expect(layer.weightA.data.some((value) => value !== 0)).toBe(true)
    layer.weightA.data.fill(0)
    expect(layer.delta().data.every((value) => value === 0)).toBe(true)
  })

  test('a new base weight brings its precision', () => {
    const layer = trained(5, 7, { rank: 3 }, 'f32')
    layer.baseWeight = random(5, 7, 1, 'f64')
    expect(layer.weightA.data).toBeInstanceOf(Float64Array)
    expect(layer.forward(random(1, 7, 1)).data).toBeInstanceOf(Float64Array)
  })
})

describe('a layer from factors', () => {
  const a = random(3, 7, 1, 'f32')
  const b = random(5, 3, 2, 'f32')

  test('does without a base weight what needs none', () => {
    const layer = LoraLayer.fromFactors(a, b, { alpha: 6 }, 'q')
    expect([layer.d, layer.k, layer.rank, layer.scaling]).toEqual([5, 7, 3, 2])
    expect([layer.trainableParams(), layer.totalParams()]).toEqual([36, 71])
    expect(layer.delta().shape).toEqual([5, 7])
    expect(layer.isTraining).toBe(false)
    expect(layer.baseWeight).toBeUndefined()
    expect(layer.merged).toBe(false)
  })

  test.each(['forward', 'effectiveWeight', 'merge'] as const)('%s says that the base weight is missing', (member) => {
    const layer = LoraLayer.fromFactors(a, b, {}, 'model.q')
    const use = () => layer[member]([[1, 2, 3, 4, 5, 6, 7]])
    expect(use).toThrow(StateError)
    expect(use).toThrow(`model.q.${member}: the layer has no base weight. Give it one with attachBase(W)`)
  })

  test('attachBase gives it one, copied, and the shape must fit', () => {
    const base = random(5, 7, 3, 'f32')
    const layer = LoraLayer.fromFactors(a, b)
    expect(() => layer.attachBase(random(7, 5, 1))).toThrow(/expected \(5, 7\), got \(7, 5\)/)
    expect(layer.attachBase(base)).toBe(layer)
    expect(maxDifference(layer.effectiveWeight(), adapted(base, b, a, layer.scaling))).toBeLessThan(1e-5)
    layer.merge()
    expect(base).toEqual(random(5, 7, 3, 'f32'))
  })

  test('may have a rank above min(d, k), and only matching shapes', () => {
    expect(LoraLayer.fromFactors(random(9, 4, 1), random(2, 9, 2)).rank).toBe(9)
    expect(() => LoraLayer.fromFactors(a, random(5, 2, 1))).toThrow(ShapeError)
    expect(() => LoraLayer.fromFactors(a, b, { rank: 4 }, 'q')).toThrow(
      /^q\.weightA: wrong shape; expected \(4, 7\), got \(3, 7\)$/,
    )
  })

  test('copies the factors', () => {
    const mine = random(3, 7, 1)
    const layer = LoraLayer.fromFactors(mine, random(5, 3, 2))
    mine.data.fill(0)
    expect(layer.weightA.data.some((value) => value !== 0)).toBe(true)
  })
})

test('the norm of s·B·A is Frobenius, and taken without forming it', () => {
  const dim = fc.integer({ min: 1, max: 9 })
  const frobenius = (matrix: Matrix) => Math.sqrt(dot(matrix, matrix))
  fc.assert(
    fc.property(dim, dim, dim, precisions, (d, k, rank, precision) => {
      const layer = LoraLayer.fromFactors(random(rank, k, 1, precision), random(d, rank, 2, precision), { alpha: 3 })
      expect(layer.normDelta()).toBeCloseTo(frobenius(layer.delta()), precision === 'f64' ? 10 : 5)
    }),
  )
  // B·A = 0 although neither factor is zero. The result is rounding noise, never NaN.
  const orthogonal = LoraLayer.fromFactors(
    [
      [0.1, 0.2],
      [0.3, 0.6],
    ],
    [
      [0.3, -0.1],
      [-0.9, 0.3],
    ],
    { alpha: 1 },
  )
  expect(orthogonal.normDelta()).toBeLessThan(1e-7)
})

test('MiCA trains A alone; B counts among all parameters', () => {
  const [a, b, config] = [random(2, 3, 1), random(4, 2, 2), { rank: 2, init: 'mica' } as const]
  for (const layer of [LoraLayer.fromFactors(a, b, config), new EmbeddingLora(a, b, config)]) {
    expect(layer.trainableParams()).toBe(2 * 3)
    expect(layer.totalParams()).toBe(4 * 3 + 2 * (4 + 3))
  }
})
