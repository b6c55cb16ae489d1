import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  LoraAdapter,
  LoraLayer,
  MismatchError,
  NumericError,
  ShapeError,
  StateError,
} from '../../src/api/node.js'
import { random } from './matrices.js'

function twoLayers(): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 2, alpha: 4 })
  for (const [i, name] of ['q', 'k'].entries()) {
    const layer = adapter.addLayer(name, random(4, 6 + i, i))
    layer.weightB = random(4, 2, i + 9)
  }
  return adapter
}

test('layers keep their names and the order in which they were added', () => {
  const adapter = new LoraAdapter({ rank: 2 })
  const added = ['z', 'a', 'm'].map((name) => adapter.addLayer(name, random(3, 4, 1)))
  expect(adapter.names()).toEqual(['z', 'a', 'm'])
  expect([...adapter]).toEqual([
    ['z', added[0]],
    ['a', added[1]],
    ['m', added[2]],
  ])
  expect(adapter.size).toBe(3)
  expect(adapter.layer('a')).toBe(added[1])
  expect(added[1].name).toBe('a')
  expect([adapter.has('a'), adapter.has('b')]).toEqual([true, false])
})

test('a layer that is not there is named, with near misses', () => {
  const adapter = new LoraAdapter({ rank: 2 })
  adapter.addLayer('model.layers.0.q_proj', random(3, 4, 1))
  expect(() => adapter.forward('model.layers.0.k_proj', [[1]])).toThrow(MismatchError)
  expect(() => adapter.layer('model.layers.0.k_proj')).toThrow(
    'model.layers.0.k_proj: the adapter has no such layer. Did you mean model.layers.0.q_proj',
  )
})

test('a name is taken once, is not empty, and a layer that cannot be made takes none', () => {
  const adapter = twoLayers()
  expect(() => adapter.addLayer('q', random(4, 6, 1))).toThrow(ConfigError)
  expect(() => adapter.addFactors('q', random(2, 6, 1), random(4, 2, 1))).toThrow(/^q: .*already/)
  expect(() => adapter.addLayer('', random(4, 6, 1))).toThrow(/needs a name/)
  expect(() => adapter.addLayer('v', random(1, 6, 1))).toThrow(/^v: the rank is too high.*at most 1, got 2/)
  expect(() => adapter.addFactors('v', random(3, 6, 1), random(4, 3, 1))).toThrow(ShapeError)
  expect(adapter.names()).toEqual(['q', 'k'])
})

describe('initialization', () => {
  test('layers of equal shape differ', () => {
    const adapter = new LoraAdapter({ rank: 2 })
    const [a, b] = ['a', 'b'].map((name) => adapter.addLayer(name, random(4, 6, 1)).weightA)
    expect(a).not.toEqual(b)
  })

  test('neither order nor number of the other layers changes one', () => {
    const alone = new LoraAdapter({ rank: 2, seed: 5 })
    const among = new LoraAdapter({ rank: 2, seed: 5 })
    for (const name of ['x', 'y']) among.addLayer(name, random(9, 9, 1))
    const expected = alone.addLayer('q', random(4, 6, 1)).weightA
    expect(among.addLayer('q', random(4, 6, 2)).weightA).toEqual(expected)
    expect(new LoraLayer(random(4, 6, 1), { rank: 2, seed: 5 }, 'q').weightA).toEqual(expected)
  })

  test('dropout draws from a stream of its own', () => {
    const make = () => new LoraAdapter({ rank: 2, dropout: 0.5 })
    const used = make()
    const layer = used.addLayer('a', random(4, 6, 1))
    for (let i = 0; i < 10; i++) layer.forward(random(2, 6, 1))
    expect(used.addLayer('b', random(4, 6, 1)).weightA).toEqual(make().addLayer('b', random(4, 6, 1)).weightA)
  })
})

test('patterns give layers their own rank and alpha', () => {
  const adapter = new LoraAdapter({ rank: 4, alpha: 8, rankPattern: { k: 2 }, alphaPattern: { 'x\\.k': 6 } })
  const of = (name: string) => {
    const layer = adapter.addLayer(name, random(5, 6, 1))
    return [layer.rank, layer.config.alpha, layer.scaling, layer.weightA.shape[0]]
  }
  expect([of('x.q'), of('x.k'), of('y.k')]).toEqual([
    [4, 8, 2, 4],
    [2, 6, 3, 2],
    [2, 8, 4, 2],
  ])
})

test('counts', () => {
  const adapter = twoLayers()
  expect(adapter.totalTrainableParams()).toBe(2 * 10 + 2 * 11)
  expect(adapter.totalParams()).toBe(44 + 50)
  expect(new LoraAdapter().totalParams()).toBe(0)
})

test('train and eval reach every layer; a new layer trains, one from factors does not', () => {
  const adapter = twoLayers()
  adapter.addFactors('v', random(2, 6, 1), random(4, 2, 1))
  const states = () => adapter.parts('linear').map(({ isTraining }) => isTraining)
  expect(states()).toEqual([true, true, false])
  expect(adapter.train()).toBe(adapter)
  expect(states()).toEqual([true, true, true])
  adapter.eval()
  expect(states()).toEqual([false, false, false])
})

test('a layer of a shape can be trained elsewhere and get its values back', () => {
  const adapter = new LoraAdapter({ rank: 2 })
  const layer = adapter.addLayerOfShape('q', [4, 6])
  expect(layer.weightA.data).toBeInstanceOf(Float32Array)
  layer.weightA = random(2, 6, 3)
  layer.weightB = random(4, 2, 4)
  expect(layer.normDelta()).toBeGreaterThan(0)
})

test('disposing lets go of base weights, merged or not, and keeps the factors', () => {
  const adapter = twoLayers()
  const layers = adapter.parts('linear')
  const factors = layers.map(({ weightA, weightB }) => [weightA, weightB])
  const bases = layers.map((layer) => layer.baseWeight!)
  layers[0].merge()
  adapter[Symbol.dispose]()
  expect(layers.map(({ baseWeight, merged }) => [baseWeight, merged])).toEqual(layers.map(() => [undefined, false]))
  expect(layers.map(({ weightA, weightB }) => [weightA, weightB])).toEqual(factors)
  expect(() => layers[0].forward(random(1, layers[0].k, 1))).toThrow(/no base weight/)
  adapter.dispose()
  layers[1].attachBase(bases[1])
  expect(layers[1].forward(random(1, layers[1].k, 1)).shape).toEqual([1, layers[1].d])
})

describe('mergeAll and unmergeAll', () => {
  const states = (adapter: LoraAdapter) => adapter.parts('linear').map(({ merged }) => merged)

  test('merge and take out again, bit for bit', () => {
    const adapter = twoLayers()
    const before = adapter.parts('linear').map((layer) => layer.baseWeight)
    const outputs = adapter.forward('q', random(2, 6, 1))
    adapter.mergeAll()
    expect(states(adapter)).toEqual([true, true])
    adapter.forward('q', random(2, 6, 1)).data.forEach((value, i) => {
      expect(value).toBeCloseTo(outputs.data[i], 12)
    })
    adapter.unmergeAll()
    expect(adapter.parts('linear').map((layer) => layer.baseWeight)).toEqual(before)
  })

  test('all or nothing: a layer that is merged already', () => {
    const adapter = twoLayers()
    adapter.layer('k').merge()
    expect(() => adapter.mergeAll()).toThrow(StateError)
    expect(() => adapter.mergeAll()).toThrow(/^k\.merge: it is merged already/)
    expect(states(adapter)).toEqual([false, true])
    expect(() => adapter.unmergeAll()).toThrow(/^q: not merged/)
    expect(states(adapter)).toEqual([false, true])
  })

  test('all or nothing: a layer without a base weight, a result that is not finite', () => {
    const adapter = twoLayers()
    adapter.addFactors('v', random(2, 6, 1), random(4, 2, 1))
    expect(() => adapter.mergeAll()).toThrow(/^v\.merge: the layer has no base weight/)
    expect(states(adapter)).toEqual([false, false, false])
    adapter.layer('v').attachBase(random(4, 6, 1))
    adapter.layer('v').weightA.data.fill(Number.NaN)
    expect(() => adapter.mergeAll()).toThrow(NumericError)
    expect(states(adapter)).toEqual([false, false, false])
  })
})
