// The limit of steps for all names of a model: far above what people write, and reached in seconds by what never ends.

import { describe, expect, test } from 'vitest'
import { ConfigError } from '../../../src/base/errors.js'
import { MAX_TOTAL_STEPS } from '../../../src/lora/patterns/expression.js'
import { stepsOf, targetMatcher } from '../../../src/lora/patterns/patterns.js'

describe('a thousand layers', () => {
  const names = Array.from({ length: 1000 }, (_, i) => `base_model.model.model.layers.${i}.self_attn.q_proj`)
  const list = names.map((name) => name.slice('base_model.model.'.length).replaceAll('.', '\\.')).join('|')

  /** Steps for all names. */
  function stepsFor(targetModules: string): number {
    const rules = { targetModules }
    const isMatch = targetMatcher(rules)
    try {
      for (const name of names) isMatch(name)
    } catch (error) {
      expect(error).toBeInstanceOf(ConfigError)
      expect((error as Error).message).toContain('too long to match')
    }
    return stepsOf(rules).steps
  }

  test.each<[string, string]>([
    ['a list of their names', `.*(${list})`],
    ['an ordinary expression', '.*\\.layers\\.(?:[0-9]|1[0-5])\\..*(?:q|k|v|o)_proj'],
  ])('%s need a tenth of the limit', (_, expression) => {
    expect(stepsFor(expression)).toBeLessThan(MAX_TOTAL_STEPS / 8)
  })

  test.each<[string, string]>([
    ['repeats of repeats', '(a*){60000}\\d+'],
    ['dots', `${'.*'.repeat(1000)}Z`],
    ['sets', `${'[\\w.]*'.repeat(500)}!`],
    ['looking behind', '.*(?<=.*.*.*Z)'],
    ['looking ahead', `${'(?=.*!)|'.repeat(2000)}!`],
    ['nested loops', '((.*)*)*Z'],
  ])('%s end at the limit', (_, expression) => {
    // One text goes over it by its own limit at most.
    expect(stepsFor(expression)).toBeLessThan(MAX_TOTAL_STEPS * 1.2)
  })
})
