// PEFT's default target_modules by the model's type.

import { expect, test } from 'vitest'
import { ConfigError } from '../../../src/api/node.js'
import { resolveConfig } from '../../../src/lora/config.js'
import { targetMatcher } from '../../../src/lora/patterns/patterns.js'
import { defaultTargetModules } from '../../../src/lora/peft/default-targets.js'
import { DEFAULT_TARGETS } from '../../../src/lora/peft/gen/default-targets.js'

test('are those of PEFT', () => {
  expect(defaultTargetModules('llama')).toEqual(['q_proj', 'v_proj'])
  expect(defaultTargetModules('gpt2')).toEqual(['c_attn'])
  expect(defaultTargetModules('phi')).toEqual(['q_proj', 'v_proj', 'fc1', 'fc2'])
  const isTarget = targetMatcher({ targetModules: defaultTargetModules('gemma4') })
  expect(isTarget('model.language_model.layers.0.self_attn.q_proj')).toBe(true)
  expect(isTarget('model.vision_tower.layers.0.self_attn.q_proj')).toBe(false)
})

test('are all usable', () => {
  expect(Object.keys(DEFAULT_TARGETS).length).toBeGreaterThanOrEqual(40)
  for (const [type, targetModules] of Object.entries(DEFAULT_TARGETS)) {
    expect(resolveConfig({ targetModules: defaultTargetModules(type) }).targetModules).toEqual(targetModules)
  }
})

test.each(['lama', 'toString', 'undefined', ''])('there are none for %s', (type) => {
  expect(() => defaultTargetModules(type)).toThrow(ConfigError)
  expect(() => defaultTargetModules(type)).toThrow('PEFT has no default modules for this type of model')
  if (type === 'lama') expect(() => defaultTargetModules(type)).toThrow('such as llama')
})
