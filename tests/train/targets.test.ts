// The layers of a new adapter: `numLayers`, and targets that the model does not have, which are errors before any
// record is read.

import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { ConfigError, MismatchError, type Model } from '../../src/api/node.js'
import { resolveConfig } from '../../src/lora/config.js'
import { targetMatcher } from '../../src/lora/patterns/patterns.js'
import { findTargets } from '../../src/train/new-adapter.js'
import { train } from '../../src/train/train.js'
import { openModel } from '../run/models.js'

let model: Model
beforeAll(async () => {
  model = await openModel('models/union-3m')
})
afterAll(() => model.close())

const targetsOf = (targetModules: string | string[], numLayers?: number) =>
  findTargets(model, resolveConfig({ targetModules }), { numLayers })
const layerOf = (name: string) => Number(/\.(\d+)\./.exec(name)?.[1])

it.each([
  ['all-linear', 7],
  [['q_proj', 'v_proj'], 2],
])('numLayers adapts the last layers: %s', async (targetModules, each) => {
  const all = await targetsOf(targetModules)
  const count = new Set(all.targets.map(({ name }) => layerOf(name))).size
  const { targets, config, linears } = await targetsOf(targetModules, 2)
  expect(count).toBeGreaterThan(2)
  expect(targets.map(({ name }) => layerOf(name)).sort()).toEqual(
    [count - 2, count - 1].flatMap((i) => Array(each).fill(i)),
  )
  expect(config.layersToTransform).toEqual([count - 2, count - 1])
  // The config alone gives PEFT the same layers.
  const isTarget = targetMatcher(config)
  expect(linears.filter(({ name }) => isTarget(name)).map(({ name }) => name)).toEqual(targets.map(({ name }) => name))
  const whole = await targetsOf(targetModules, count)
  expect(whole.targets.map(({ name }) => name)).toEqual(all.targets.map(({ name }) => name))
  await expect(targetsOf(targetModules, count + 1)).rejects.toThrow(`expected at most ${count}, got ${count + 1}`)
})

it('numLayers takes no expression, and no second list of layers', async () => {
  await expect(targetsOf('.*q_proj', 1)).rejects.toThrow(ConfigError)
  const data = [{ text: 'a' }]
  const both = train({ model, data, numLayers: 1, config: { targetModules: ['q_proj'], layersToTransform: [0] } })
  await expect(both).rejects.toThrow('numLayers: not together with `layersToTransform`')
  const warmups = train({ model, data, warmupSteps: 1, warmupRatio: 0.1 })
  await expect(warmups).rejects.toThrow('warmupSteps: not together with `warmupRatio`')
})

it('refuses a target that the model does not have before the records are encoded', async () => {
  const stage = vi.fn()
  const data = [{ text: 'a' }, { text: 1 }]
  const run = train({ model, data, config: { targetModules: ['q_prjo'] }, on: { stage } })
  await expect(run).rejects.toThrow(MismatchError)
  await expect(run).rejects.toThrow(/targetModules: no module of the model matches "q_prjo".*q_proj/)
  expect(stage).not.toHaveBeenCalled()
})
