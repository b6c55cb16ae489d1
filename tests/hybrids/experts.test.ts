// PEFT's target_parameters on a graph that computes each expert by layers of its own.

import { afterAll, beforeAll, expect, it } from 'vitest'
import { ModelSession } from '../../src/infer/model-session.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import { type Cell, openCell, sessionDifference } from './cell.js'

let cell: Cell
beforeAll(async () => {
  cell = await openCell('tests/golden/hybrids/qwen3_moe_experts', 'mobius')
})
afterAll(() => cell.close())

it('gives PEFT’s logits in sessions', async () => {
  expect(
    cell.adapter
      .parts('parameter')
      .map(({ name }) => name)
      .sort(),
  ).toEqual(['model.layers.0.mlp.experts.down_proj', 'model.layers.0.mlp.experts.gate_up_proj'])
  expect(await sessionDifference(cell)).toBeLessThan(1e-5)
})

it('refuses a parameter that the graph has no layers for, by name', async () => {
  const adapter = new LoraAdapter({ rank: 1, targetModules: [], targetParameters: ['mlp.experts.gate_weight'] })
  adapter.addExperts('model.layers.0.mlp.experts.gate_weight', Array(4).fill([1, 2]), [[1, 2, 3, 4]])
  const session = ModelSession.open(cell.model, { adapters: { adapter } })
  await expect(session).rejects.toThrow(/gate_weight/)
})
