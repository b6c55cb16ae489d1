// Python's regular expressions: what Python's own engine says (tests/golden/expressions.json), and how long hostile
// ones take.

import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ConfigError } from '../../../src/base/errors.js'
import { fullMatch, PatternTable, targetMatcher } from '../../../src/lora/patterns/patterns.js'
import { runs } from '../../thorough.js'

const golden: {
  names: string[]
  full: Record<string, string | null>
  tail: Record<string, string | null>
  layers: Record<string, (string | null)[]>
} = JSON.parse(readFileSync(new URL('../../golden/expressions.json', import.meta.url), 'utf8'))

/** Expressions with back-references are refused. */
const HAS_REFERENCE = /\(\?P=|\\[1-9](?![0-7]{2})/

/** One character a name, as in the golden file; null when the expression is refused. */
function answers(test: () => (name: string) => boolean): string | null {
  try {
    const matches = test()
    return golden.names.map((name) => (matches(name) ? '1' : '0')).join('')
  } catch (error) {
    if (error instanceof ConfigError) return null
    throw error
  }
}

test('fullmatch is Python’s', () => {
  const wrong = Object.entries(golden.full).flatMap(([pattern, answer]) => {
    const expected = HAS_REFERENCE.test(pattern) ? null : answer
    const got = answers(() => {
      const matcher = fullMatch(pattern, 'target_modules')
      return (name) => matcher.test(name)
    })
    return got === expected ? [] : [{ pattern, expected, got }]
  })
  expect(wrong).toEqual([])
  expect(Object.keys(golden.full).length).toBeGreaterThan(1000)
  expect(Object.values(golden.full).filter((bits) => bits === null).length).toBeGreaterThan(15)
})

test('ranks go by the end of a name, as in PEFT', () => {
  const wrong = Object.entries(golden.tail).flatMap(([pattern, answer]) => {
    const expected = HAS_REFERENCE.test(pattern) ? null : answer
    const got = answers(() => {
      const table = new PatternTable({ [pattern]: 1 }, 'rank_pattern')
      return (name) => table.find(name) === 1
    })
    return got === expected ? [] : [{ pattern, expected, got }]
  })
  expect(wrong).toEqual([])
})

test.each(Object.entries(golden.layers))(
  'the layer’s index with the pattern %s is PEFT’s',
  (layersPattern, expected) => {
    for (const [i, name] of golden.names.entries()) {
      for (const index of [0, 1, 2, 3, 11]) {
        const last = name.split('.').at(-1)!
        if (last === name || last === '') continue
        const matches = targetMatcher({ targetModules: [last], layersToTransform: [index], layersPattern })
        expect([name, index, matches(name)]).toEqual([
          name,
          index,
          expected[i] !== null && Number(expected[i]) === index,
        ])
      }
    }
  },
)

describe('expressions that run exponentially elsewhere', () => {
  test.each([
    '(a+)+$',
    '(a+)+b',
    '(a|a)*b',
    '(a|aa)+b',
    '(.*)*b',
    '(.*?(default).*|.*(x).*)*',
    '((a*)*)*b',
    '(a?){60}a{60}b',
    '(?:a*a*)*b',
    '.*.*.*.*.*.*.*.*b',
    '(?=(a+)+b)a*',
    '(?!(a|a)*b)(a|a)*b',
    '(?<=(a|a)*b)a*b',
    '([a-z]+)*\\.([a-z]+)*b',
  ])('%s', (pattern) => {
    const started = performance.now()
    for (const length of [30, 200, 1000])
      expect(fullMatch(pattern, 'target_modules').test(`${'a'.repeat(length)}!`)).toBe(false)
    expect(performance.now() - started).toBeLessThan(5000)
  })

  test.each([
    ['(.*)\\1b', 'a reference to a group'],
    ['(?P<x>a)(?P=x)', 'a reference to a group'],
    ['((a{1000}){1000}){1000}', 'too large'],
    ['a{99999999999}', 'too large'],
    [`${'('.repeat(1000)}a${')'.repeat(1000)}`, 'nested too deep'],
    ['a++', 'possessive'],
    ['(?>a)', 'a group that begins with (?>a'],
    ['(a)?(?(1)b|c)', 'a group that begins with (?(1'],
    ['(?x) a', 'the flags x'],
  ])('%s is refused: %s', (pattern, reason) => {
    const started = performance.now()
    const attempt = () => fullMatch(pattern, 'target_modules').test('a'.repeat(300))
    expect(attempt).toThrow(ConfigError)
    expect(attempt).toThrow(reason)
    expect(performance.now() - started).toBeLessThan(5000)
  })

  test('long lists of full names are fine', () => {
    const names = Array.from({ length: 1000 }, (_, i) => `model.layers.${i}.self_attn.q_proj`)
    const started = performance.now()
    const { test: matches } = fullMatch(
      `(?:${names.map((name) => name.replaceAll('.', '\\.')).join('|')})`,
      'target_modules',
    )
    expect(names.every(matches)).toBe(true)
    const anywhere = fullMatch(`.*(?:${names.map((name) => name.replaceAll('.', '\\.')).join('|')})`, 'target_modules')
    expect(anywhere.test(`base.${names[999]}`)).toBe(true)
    expect(performance.now() - started).toBeLessThan(5000)
  })
})

test('any expression on any name gives an answer or our error', () => {
  const piece = fc.constantFrom(
    ...['a', 'b', '.', '*', '+', '?', '(', ')', '|', '[', ']', '^', '$', '\\', '{', '}', '1', ',', '-', ':', '=', '!'],
    ...['(?:', '(?=', '(?<!', '(?P<x>', '(?P=x)', '\\1', '\\d', '{2}', '[^', 'é', '😀'],
  )
  const pattern = fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join(''))
  fc.assert(
    fc.property(pattern, fc.string({ maxLength: 20 }), (text, name) => {
      try {
        expect(typeof fullMatch(text, 'target_modules').test(name)).toBe('boolean')
      } catch (error) {
        if (!(error instanceof ConfigError)) throw error
      }
    }),
    { numRuns: runs(5000) },
  )
})
