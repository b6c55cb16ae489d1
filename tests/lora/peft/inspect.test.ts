import { describe, expect, test } from 'vitest'
import { LoraAdapter, type LoraConfigInput } from '../../../src/api/node.js'
import { inspectAdapter } from '../../../src/lora/peft/inspect.js'
import { random } from '../matrices.js'

function adapter(config: LoraConfigInput = {}, names = ['q']): LoraAdapter {
  const result = new LoraAdapter({ rank: 2, alpha: 6, ...config })
  for (const name of names) {
    const { rank } = result.addLayerOfShape(name, [4, 5])
    result.layer(name).weightB = random(4, rank, 1)
  }
  return result
}

test('reports what the command line promises', async () => {
  const inspected = adapter()
  inspected.layer('q').weightA = [
    [3, 0, 0, 0, 0],
    [0, 4, 0, 0, 0],
  ]
  inspected.layer('q').weightB = [
    [1, 0],
    [0, 0],
    [0, 2],
    [0, 0],
  ]
  inspected.layer('q').dtype = 'bf16'
  expect(await inspectAdapter(inspected)).toEqual({
    config: inspected.config,
    trainableParams: 18,
    layers: [
      {
        name: 'q',
        kind: 'linear',
        d: 4,
        k: 5,
        rank: 2,
        alpha: 6,
        scaling: 3,
        dtype: 'bf16',
        normA: 5,
        normB: Math.sqrt(5),
        normDelta: expect.closeTo(3 * Math.sqrt(9 + 64), 10),
        singularValues: [expect.closeTo(24, 10), expect.closeTo(9, 10)],
        effectiveRank: expect.closeTo(Math.exp(-(24 / 33) * Math.log(24 / 33) - (9 / 33) * Math.log(9 / 33)), 10),
        rank99: 2,
        hasMagnitude: false,
        hasBias: false,
      },
    ],
    replacements: [],
    problems: [],
    warnings: [],
  })
})

describe('warns of', () => {
  test('layers that change nothing', async () => {
    const inspected = adapter({}, ['a', 'b', 'c'])
    inspected.layer('b').weightB.data.fill(0)
    inspected.layer('c').weightA.data.fill(0)
    expect((await inspectAdapter(inspected)).warnings).toEqual([
      'b: B is all zero, as before training, so the layer changes nothing',
      'c: A is all zero, so the layer changes nothing',
    ])
    for (const layer of inspected.parts('linear')) layer.weightB.data.fill(0)
    expect((await inspectAdapter(inspected)).warnings).toEqual([
      'All 3 layers: B is all zero, as before training, so the layer changes nothing',
    ])
  })

  test('ranks that B·A cannot use', async () => {
    const inspected = new LoraAdapter({ rank: 5 })
    inspected.addFactors('q', random(5, 6, 1), random(4, 5, 2))
    expect((await inspectAdapter(inspected)).warnings).toEqual([
      'q: the rank is above min(d, k): B·A cannot have such a high rank',
    ])
  })

  test('a rank that is not used', async () => {
    const inspected = adapter()
    const { data } = inspected.layer('q').weightB
    for (let i = 0; i < data.length; i += 2) data[i + 1] = 3 * data[i]
    expect((await inspectAdapter(inspected)).warnings).toEqual([
      'q: the rank of B·A is lower than the rank of the adapter, so a smaller rank would be enough',
    ])
  })

  test('a start that changed the base', async () => {
    const trained = new LoraAdapter({ rank: 1, init: 'olora' })
    trained.addFactors('q', [[1, 2]], [[1], [2]])
    expect((await inspectAdapter(trained)).warnings).toEqual([
      expect.stringMatching(/^It started as olora, .*lowrank to-plain/),
    ])
  })

  test('a scaling far from 1', async () => {
    expect((await inspectAdapter(adapter({ alpha: 64 }))).warnings).toEqual(['q: the scaling is unusual (32)'])
    expect((await inspectAdapter(adapter({ alpha: 32 }))).warnings).toEqual([])
  })

  test('targets without a layer, as a file that lost some has them', async () => {
    const names = ['model.layers.0.q', 'model.layers.1.q']
    const targetModules = ['q', 'model.layers.1.q', 'layers.0.q', 'a', 'ers.0.q', 'model.layers.2.q', 'b']
    expect((await inspectAdapter(adapter({ targetModules }, names))).warnings).toEqual([
      'targetModules has a, ers.0.q, model.layers.2.q and 1 more, for which there is no layer',
    ])
    expect((await inspectAdapter(adapter({ targetModules: '.*\\.x' }, names))).warnings).toEqual([])
  })
})
