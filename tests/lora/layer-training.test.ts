import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { LoraLayer, type Matrix, ShapeError, StateError } from '../../src/api/node.js'
import { adapted, dot, maxDifference, random, rows, trained } from './matrices.js'

describe('dropout', () => {
  const config = { rank: 3, dropout: 0.3 }

  test('drops elements of the branch’s input and scales the rest, so that the mean stays', () => {
    const layer = trained(4, 6, config)
    const x = random(1, 6, 9)
    layer.eval()
    const exact = layer.forward(x)
    layer.train()
    const runs = 20_000
    const mean = new Float64Array(4)
    const square = new Float64Array(4)
    for (let run = 0; run < runs; run++) {
      layer.forward(x).data.forEach((value, i) => {
        mean[i] += value / runs
        square[i] += value ** 2 / runs
      })
    }
    for (let i = 0; i < 4; i++) {
      const deviation = Math.sqrt((square[i] - mean[i] ** 2) / runs)
      expect(deviation).toBeGreaterThan(0)
      expect(Math.abs(mean[i] - exact.data[i])).toBeLessThan(4.5 * deviation)
    }
  })

  test('the share of dropped elements is the probability, and the base branch is whole', () => {
    // With W = 0 and B·A = identity, the output is the LoRA branch. With W = identity and B = 0, nothing is dropped.
    const size = 40
    const identity = rows({ data: new Float64Array(size * size), shape: [size, size] }).map((row, i) =>
      row.map((_, j) => (i === j ? 1 : 0)),
    )
    const layer = new LoraLayer(
      identity.map((row) => row.map(() => 0)),
      { rank: size, alpha: size, dropout: 0.3 },
    )
    layer.weightA = identity
    layer.weightB = identity
    const ones = Array.from({ length: 250 }, () => Array(size).fill(1))
    const { data } = layer.forward(ones)
    const dropped = data.filter((value) => value === 0).length / data.length
    expect([...new Set(data)].sort()).toEqual([0, 1 / 0.7])
    expect(Math.abs(dropped - 0.3)).toBeLessThan(4.5 * Math.sqrt((0.3 * 0.7) / data.length))
    const base = new LoraLayer(identity, { rank: size, dropout: 0.9 })
    expect(base.forward(ones).data.every((value) => value === 1)).toBe(true)
  })

  test('is the same for the same seed and name, and another for another', () => {
    const x = random(4, 7, 1)
    const run = (seed: number, name: string) => {
      const layer = new LoraLayer(random(5, 7, 1), { ...config, seed }, name)
      layer.weightA = random(3, 7, 3)
      layer.weightB = random(5, 3, 4)
      return [layer.forward(x), layer.forward(x)]
    }
    expect(run(1, 'a')).toEqual(run(1, 'a'))
    expect(run(1, 'a')[0]).not.toEqual(run(1, 'a')[1])
    expect(run(1, 'a')).not.toEqual(run(2, 'a'))
    expect(run(1, 'a')).not.toEqual(run(1, 'b'))
  })

  test('is off in evaluation, while merged, and at probability 0', () => {
    const layer = trained(5, 7, config)
    const x = random(4, 7, 1)
    const exact = layer.eval().forward(x)
    expect(layer.forward(x)).toEqual(exact)
    layer.train()
    expect(layer.forward(x)).not.toEqual(exact)
    layer.merge()
    expect(maxDifference(layer.forward(x), exact)).toBeLessThan(1e-12)
    expect(layer.forward(x)).toEqual(layer.forward(x))
    const without = trained(5, 7, { rank: 3 })
    expect(without.forward(x)).toEqual(without.forward(x))
  })
})

describe('backward', () => {
  /** Σ g ∘ forward(x). With gradOutput g, backward gives its gradients. */
  function objective(layer: LoraLayer, x: Matrix, g: Matrix): number {
    return dot(layer.forward(x), g)
  }

  function centralDifference(parameter: Matrix, i: number, value: () => number): number {
    const step = 1e-5
    const old = parameter.data[i]
    parameter.data[i] = old + step
    const up = value()
    parameter.data[i] = old - step
    const down = value()
    parameter.data[i] = old
    return (up - down) / (2 * step)
  }

  test('agrees with central differences', () => {
    const dim = fc.integer({ min: 1, max: 5 })
    fc.assert(
      fc.property(dim, dim, dim, fc.boolean(), (n, d, k, useRslora) => {
        const layer = trained(d, k, { rank: Math.min(d, k), alpha: 5, useRslora })
        const x = random(n, k, 7)
        const g = random(n, d, 8)
        layer.forward(x)
        const gradients = layer.backward(g)
        for (const [gradient, parameter] of [
          [gradients.weightA, layer.weightA],
          [gradients.weightB, layer.weightB],
          [gradients.input, x],
        ]) {
          expect(gradient.shape).toEqual(parameter.shape)
          for (let i = 0; i < parameter.data.length; i++) {
            const expected = centralDifference(parameter, i, () => objective(layer, x, g))
            expect(Math.abs(gradient.data[i] - expected)).toBeLessThan(1e-8 * (1 + Math.abs(expected)))
          }
        }
      }),
      { numRuns: 30 },
    )
  })

  test('with the norms of DoRA held, and of a bias, agrees with central differences; with dropout too', () => {
    const dim = fc.integer({ min: 1, max: 5 })
    fc.assert(
      fc.property(dim, dim, dim, fc.boolean(), fc.boolean(), (n, d, k, useDora, isDropping) => {
        const config = { rank: 2, alpha: 5, dropout: isDropping ? 0.4 : 0, useDora, loraBias: !useDora }
        const [w, a, b] = [random(d, k, 1), random(2, k, 3), random(d, 2, 4)]
        const own = random(1, d, 5)
        const [x, g] = [random(n, k, 7), random(n, d, 8)]
        const norms = () => adapted(w, b, a, 2.5).map((row) => Math.hypot(...row))
        const first = norms()
        const make = () => {
          // c = m / ‖W + s·B·A‖ stays constant while A and B change.
          const held = norms().map((norm, i) => (own.data[i] * norm) / first[i])
          const vectors = useDora ? { magnitude: held } : { biasB: own.data }
          return LoraLayer.fromFactors(a, b, config, 'q', vectors).attachBase(w).train()
        }
        const layer = make()
        layer.forward(x)
        const { magnitude, biasB, ...gradients } = layer.backward(g)
        expect([magnitude === undefined, biasB === undefined]).toEqual([!useDora, useDora])
        for (const [gradient, parameter] of [
          [gradients.weightA, a],
          [gradients.weightB, b],
          [{ data: (magnitude ?? biasB)!, shape: own.shape }, own],
          [gradients.input, x],
        ]) {
          expect(gradient.shape).toEqual(parameter.shape)
          for (let i = 0; i < parameter.data.length; i++) {
            const expected = centralDifference(parameter, i, () => objective(make(), x, g))
            expect(Math.abs(gradient.data[i] - expected)).toBeLessThan(1e-7 * (1 + Math.abs(expected)))
          }
        }
      }),
      { numRuns: 40 },
    )
  })

  test('goes through the last forward’s dropout mask', () => {
    // Layers with the same seed and name drop the same elements in their first forward pass.
    const x = random(3, 6, 7)
    const g = random(3, 4, 8)
    const a = random(2, 6, 3)
    const b = random(4, 2, 4)
    const make = () => {
      const layer = new LoraLayer(random(4, 6, 1), { rank: 2, dropout: 0.5 }, 'q')
      layer.weightA = a
      layer.weightB = b
      return layer
    }
    const layer = make()
    expect(layer.forward(x)).not.toEqual(make().eval().forward(x))
    const gradients = layer.backward(g)
    for (const [gradient, parameter] of [
      [gradients.weightA, a],
      [gradients.weightB, b],
      [gradients.input, x],
    ]) {
      for (let i = 0; i < parameter.data.length; i++) {
        const expected = centralDifference(parameter, i, () => objective(make(), x, g))
        expect(Math.abs(gradient.data[i] - expected)).toBeLessThan(1e-8)
      }
    }
  })

  test('a caller who changes the input after forward changes nothing', () => {
    const x = random(3, 7, 7)
    const layer = trained()
    layer.forward(x)
    const expected = layer.backward(random(3, 5, 8))
    layer.forward(x)
    x.data.fill(0)
    expect(layer.backward(random(3, 5, 8))).toEqual(expected)
  })

  test('is enough to train with: gradient descent fits a low-rank target', () => {
    const layer = new LoraLayer(random(4, 6, 1), { rank: 2, alpha: 2 })
    const target = trained(4, 6, { rank: 2, alpha: 2, seed: 5 }, 'f64', 1)
    const x = random(32, 6, 3)
    const y = target.forward(x)
    const losses: number[] = []
    for (let step = 0; step < 400; step++) {
      const difference = layer.forward(x)
      difference.data.forEach((value, i) => {
        difference.data[i] = value - y.data[i]
      })
      losses.push(dot(difference, difference))
      const gradients = layer.backward(difference)
      for (const [parameter, gradient] of [
        [layer.weightA, gradients.weightA],
        [layer.weightB, gradients.weightB],
      ]) {
        for (let i = 0; i < parameter.data.length; i++) parameter.data[i] -= 0.02 * gradient.data[i]
      }
    }
    expect(losses.at(-1)! / losses[0]).toBeLessThan(1e-3)
  })

  test('needs a forward to differentiate', () => {
    const g = random(3, 5, 1)
    const layer = trained()
    expect(() => layer.backward(g)).toThrow(StateError)
    expect(() => layer.backward(g)).toThrow(/there was no forward\(\)/)
    layer.forward(random(3, 7, 1))
    expect(() => layer.backward(random(2, 5, 1))).toThrow(ShapeError)
    layer.weightA = random(3, 7, 2)
    expect(() => layer.backward(g)).toThrow(/there was no forward\(\)/)
    layer.forward(random(3, 7, 1))
    layer.merge()
    expect(() => layer.backward(g)).toThrow(/not while merged/)
    layer.forward(random(3, 7, 1))
    expect(() => layer.backward(g)).toThrow(StateError)
    layer.unmerge()
    expect(() => layer.backward(g)).toThrow(/there was no forward\(\)/)
  })
})
