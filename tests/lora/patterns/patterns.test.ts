import { describe, expect, test } from 'vitest'
import { ConfigError } from '../../../src/api/node.js'
import {
  fullMatch,
  isAllLinear,
  matchTimeOf,
  patternTable,
  type TargetRules,
  targetMatcher,
} from '../../../src/lora/patterns/patterns.js'

const q = (layer: number) => `model.layers.${layer}.self_attn.q_proj`

describe('which modules a config adapts, as PEFT decides', () => {
  test.each<[TargetRules, string[], string[]]>([
    [{ targetModules: [] }, [], [q(0)]],
    [{ targetModules: ['q_proj'] }, [q(0), 'q_proj'], ['model.xq_proj', 'q_proj.x', 'q']],
    [{ targetModules: ['self_attn.q_proj'] }, [q(0)], ['model.q_proj']],
    [{ targetModules: '.*\\.q_proj' }, [q(0)], ['q_proj', `${q(0)}.x`]],
    [{ targetModules: 'a|b' }, ['a', 'b'], ['ab', 'xa', 'bx']],
    [{ targetModules: 'all-linear' }, [q(0), 'anything'], []],
    [{ targetModules: 'ALL-LINEAR', excludeModules: ['lm_head'] }, [q(0)], ['lm_head', 'model.lm_head']],
    [{ targetModules: ['q_proj'], excludeModules: 'model\\.layers\\.1\\..*' }, [q(0)], [q(1)]],
    [{ targetModules: ['q_proj'], excludeModules: [q(1)] }, [q(0)], [q(1)]],
    [{ targetModules: ['q_proj'], layersToTransform: 1 }, [q(1), 'q_proj'], [q(0), q(11), 'layers.q_proj']],
    [{ targetModules: ['q_proj'], layersToTransform: [0, 11] }, [q(0), q(11)], [q(1)]],
    [{ targetModules: ['q_proj'], layersToTransform: [] }, [q(0), 'q_proj'], []],
    [{ targetModules: [q(0)], layersToTransform: [1] }, [q(0)], [q(1)]],
    [
      { targetModules: ['q'], layersToTransform: [1], layersPattern: ['h', 'layers'] },
      ['x.h.1.q', 'h.1.q', 'm.layers.1.q'],
      ['x.blocks.1.q', 'x.h.0.q'],
    ],
    [{ targetModules: ['w1'], layersToTransform: [1] }, ['m.layers.1.experts.0.w1'], ['m.layers.0.experts.1.w1']],
    [{ targetModules: ['q'], layersToTransform: [1], layersPattern: '(?:h|layers)' }, ['m.h.1.q'], ['m.h.2.q']],
  ])('%j', (rules, yes, no) => {
    const matches = targetMatcher(rules)
    expect(yes.filter((name) => !matches(name))).toEqual([])
    expect(no.filter(matches)).toEqual([])
  })

  test('all-linear is a word, not an expression', () => {
    expect(isAllLinear('All-Linear')).toBe(true)
    expect(isAllLinear(['all-linear'])).toBe(false)
    expect(isAllLinear('all-linear.*')).toBe(false)
  })
})

describe("Python's expressions", () => {
  test.each([
    ['\\Amodel\\.q\\Z', 'model.q', true],
    ['(?i)MODEL\\.Q', 'model.q', true],
    ['(?#which)q', 'q', true],
    ['\\(?P<q', '(P<q', true],
    ['(?:^|.*\\.)q', 'model.q', true],
  ])('%s on %s: %s', (pattern, name, expected) => {
    expect(fullMatch(pattern, 'targetModules')(name)).toBe(expected)
  })

  test.each(['(', 'a**', '(?x)a b', '(?P<a>x)(?P<a>y)', 'a'.repeat(100_000)])('%.20s is refused by name', (pattern) => {
    expect(() => fullMatch(pattern, 'target_modules')).toThrow(ConfigError)
    expect(() => fullMatch(pattern, 'target_modules')).toThrow(/^target_modules: .*got /)
  })
})

test('the first pattern that matches counts', () => {
  const table = patternTable({ 'a.q': 1, q: 2, '.*': 3 }, 'rankPattern')
  expect(['x.a.q', 'b.q', 'aq', 'x'].map((name) => table(name))).toEqual([1, 2, 3, 3])
  expect(patternTable({ q: 2 }, 'rankPattern')('k')).toBeUndefined()
})

describe('keys of pattern tables that are names', () => {
  test.each<[key: string, name: string, value: number | undefined]>([
    ['q_proj', 'q_proj', 1],
    ['q_proj', q(0), 1],
    ['q_proj', 'xq_proj', undefined],
    ['self_attn.q_proj', q(0), 1],
    ['self.attn.q_proj', q(0), 1],
    ['layers.0', 'model.layers.0', 1],
    ['layers.0', 'model.layersx0', 1],
    ['a.b', 'x.a\nb', undefined],
    ['a.b', 'x.a😀b', 1],
    ['.', 'a.😀', 1],
    ['a-b', 'x.a-b', 1],
    ['a', 'x\n.a', undefined],
    ['^q', 'q', 1],
    ['^q', 'a.q', undefined],
    ['^a.q', 'axq', 1],
    ['^a\\.q', 'axq', undefined],
    ['a\\.q', 'x.a.q', 1],
    ['a\\.q', 'x.axq', undefined],
    ['a\\-q', 'x.a-q', 1],
  ])('%j and %j', (key, name, value) => {
    expect(patternTable({ [key]: 1 }, 'rankPattern')(name)).toBe(value)
    // The same as an expression.
    expect(patternTable({ [`(?:${key})`]: 1 }, 'rankPattern')(name)).toBe(value)
  })
})

test('all expressions of a config share their time, and the error names the one that went over', () => {
  const rules = { targetModules: '.*proj', excludeModules: '.*lm.*' }
  const isMatch = targetMatcher(rules)
  expect(targetMatcher(rules)).toBe(isMatch)
  expect(isMatch('layers.0.q_proj')).toBe(true)
  expect(matchTimeOf(rules).spent).toBeGreaterThan(0)
  matchTimeOf(rules).spent = 60_000
  expect(isMatch('layers.0.q_proj')).toBe(true)
  expect(() => isMatch('layers.1.q_proj')).toThrow(/targetModules: .*too long to match so many names; got \.\*proj/)
  expect(matchTimeOf({ ...rules }).spent).toBe(0)
})

test('keys that are the names of a thousand layers', () => {
  const names = Array.from({ length: 1000 }, (_, i) => `base_model.model.model.layers.${i}.self_attn.q_proj`)
  const keys = names.map((name) => `^${name.replaceAll('.', '\\.')}`)
  const table = patternTable(Object.fromEntries(keys.map((key, i) => [key, i])), 'rankPattern')
  expect(names.map((name) => table(name))).toEqual(names.map((_, i) => i))
})
