// PEFT's target_parameters on the forms that graphs have of experts: a layer for each, ONNX Runtime's MoE, and one
// tensor from which the chosen experts are gathered.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ExpertLora, LoraAdapter, loadAdapter } from '../../src/api/node.js'
import { resolveConfig } from '../../src/lora/config.js'
import { ModelSession } from '../../src/run/model-session.js'
import { checkOptions } from '../../src/train/check-options.js'
import { findTargets, newAdapter } from '../../src/train/new-adapter.js'
import { resolveSettings } from '../../src/train/settings.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import {
  type Cell,
  lossesWithoutBranch,
  mergeDifference,
  openCell,
  sessionDifference,
  trainDifferences,
} from './cell.js'

describe.each([
  ['qwen3_moe_experts', 'mobius', 'model.layers.0.mlp.experts'],
  ['lfm2_moe_experts', 'genai', 'model.layers.1.feed_forward.experts'],
  ['gpt_oss_experts', 'dynamo', 'model.layers.0.mlp.experts'],
])('%s by %s', (family, exporter, module) => {
  let cell: Cell
  beforeAll(async () => {
    cell = await openCell(`tests/golden/hybrids/${family}`, exporter)
  })
  afterAll(() => cell.close())

  it('gives PEFT’s logits in sessions and merged', async () => {
    const names = cell.adapter.parts('parameter').map(({ name }) => name)
    expect(names).toEqual(expect.arrayContaining([`${module}.down_proj`, `${module}.gate_up_proj`]))
    expect(await sessionDifference(cell)).toBeLessThan(1e-5)
    expect(await mergeDifference(cell)).toBeLessThan(1e-5)
  })

  it('trains with PEFT’s losses and gradients, and reads each factor', async () => {
    const { loss, gradient } = await trainDifferences(cell)
    expect(loss).toBeLessThan(1e-5)
    expect(gradient).toBeLessThan(1e-3)
    const losses = await lossesWithoutBranch(cell)
    const whole = cell.numbers.loss.unequal
    for (const [name, value] of losses) expect(Math.abs(value - whole), name).toBeGreaterThan(1e-5)
  })

  it('begins a new adapter at the parameters that the config names', async () => {
    const { model } = cell
    const start = async (targetParameters: string[]) => {
      const config = resolveConfig({ rank: 2, targetModules: [], targetParameters })
      const targets = await findTargets(model, config, {})
      return newAdapter(model, targets, { task: causalLm, open: causalLm.open(model, []) })
    }
    const adapter = await start(['experts.down_proj'])
    for (const part of adapter.parts()) {
      const trained = cell.adapter.get(part.name) as ExpertLora
      expect([part.kind, ...part.shape]).toEqual(['parameter', ...trained.shape])
      expect((part as ExpertLora).weightA.data.every((value) => value !== 0)).toBe(true)
      expect((part as ExpertLora).weightB.data.every((value) => value === 0)).toBe(true)
    }
    expect(adapter.names()).toContain(`${module}.down_proj`)
    await expect(start(['down_proj', 'experts.up'])).rejects.toThrow(/experts\.up.*down_proj/s)
  })

  it('refuses a parameter that the graph has no place for, by name', async () => {
    const adapter = new LoraAdapter({ rank: 1, targetModules: [], targetParameters: ['mlp.experts.gate_weight'] })
    adapter.addExperts(`${module}.gate_weight`, Array(4).fill([1, 2]), [[1, 2, 3, 4]])
    const session = ModelSession.open(cell.model, { adapters: { adapter } })
    await expect(session).rejects.toThrow(/gate_weight/)
  })

  it('refuses dropout and DoRA of parameters, as PEFT does', () => {
    for (const [setting, value] of [
      ['dropout', 0.1],
      ['useDora', true],
    ] as const) {
      const config = { targetParameters: ['experts.down_proj'], [setting]: value }
      expect(() => checkOptions({ model: cell.model, data: [], config } as never, resolveSettings({}))).toThrow(setting)
    }
  })
})

it('refuses experts in QMoE, by name', async () => {
  const cell = await openCell('tests/golden/hybrids/lfm2_moe', 'genai-qmoe-q4')
  const adapter = await loadAdapter('tests/golden/hybrids/lfm2_moe_experts/adapter')
  const session = ModelSession.open(cell.model, { adapters: { adapter } })
  await expect(session).rejects.toThrow(/1\.feed_forward\.experts\.\w+: .*QMoE.*float export/)
  await cell.close()
})
