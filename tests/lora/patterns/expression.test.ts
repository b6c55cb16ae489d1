// Python's regular expressions: what Python's own engine says (tests/golden/expressions.json), and how long hostile
// ones take.

import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ConfigError } from '../../../src/api/node.js'
import { fullMatch, patternTable, targetMatcher } from '../../../src/lora/patterns/patterns.js'
import { runs } from '../../thorough.js'

const golden: {
  names: string[]
  full: Record<string, string | null>
  tail: Record<string, string | null>
  layers: Record<string, (string | null)[]>
} = JSON.parse(readFileSync(new URL('../../golden/expressions.json', import.meta.url), 'utf8'))

/** What is refused by name: back-references, groups with flags, and what could run for hours. */
const REFUSED = /a reference to a group|a group that begins with \(\?-?[is]|it could take hours/

/** One character a name, as in the golden file; null or the reason when the expression is refused. */
function answers(test: () => (name: string) => boolean): string | null {
  try {
    const matches = test()
    return golden.names.map((name) => (matches(name) ? '1' : '0')).join('')
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    return REFUSED.exec(error.message)?.[0] ?? null
  }
}

/** Compares with Python's answers, and returns how many expressions were refused by name. */
function compare(golden: Record<string, string | null>, matching: (pattern: string) => (name: string) => boolean) {
  const results = Object.entries(golden).map(([pattern, expected]) => {
    return { pattern, expected, got: answers(() => matching(pattern)) }
  })
  const refused = results.filter(({ got }) => got !== null && /[a-z]/.test(got))
  expect(results.filter((result) => !refused.includes(result) && result.got !== result.expected)).toEqual([])
  return refused
}

test('fullmatch is Python’s', () => {
  const refused = compare(golden.full, (pattern) => fullMatch(pattern, 'target_modules'))
  expect(refused.map(({ pattern }) => pattern).filter((pattern) => /default|model/.test(pattern))).toEqual([
    '(.*?(default).*|.*(q).*)*',
  ])
  expect(refused.length).toBeLessThan(250)
  const long = Object.keys(golden.full).find((pattern) => pattern.includes('vision|image'))!
  expect(fullMatch(long, 'target_modules')(`language_model.${'layers.'.repeat(10)}proj`)).toBe(false)
  expect(Object.keys(golden.full).length).toBeGreaterThan(1000)
  expect(Object.values(golden.full).filter((bits) => bits === null).length).toBeGreaterThan(15)
})

test('ranks go by the end of a name, as in PEFT', () => {
  compare(golden.tail, (pattern) => {
    const table = patternTable({ [pattern]: 1 }, 'rank_pattern')
    return (name) => table(name) === 1
  })
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

describe('expressions that could run for hours', () => {
  test.each([
    '(a+)+$',
    '(a|a)*b',
    '(a|aa)+b',
    '(?i)(A|aa)*b',
    '(.*)*b',
    '((a*)*)*b',
    '(a?){60}a{60}b',
    `${'a?'.repeat(60)}b`,
    `${'(?:a|[ab])'.repeat(60)}b`,
    '(?:a*a*)*b',
    '.*.*.*.*.*.*.*.*b',
    '(?=(a+)+b)a*',
    '(?<=(a|a)*b)a*b',
    '((a{1000}){1,1000}){1,1000}',
    '((){10000}){100000}',
    '((.*){10000}){100000}',
  ])('%s is refused', (pattern) => {
    const started = performance.now()
    expect(() => fullMatch(pattern, 'target_modules')('a'.repeat(200))).toThrow(/^target_modules: .*could take hours/)
    expect(performance.now() - started).toBeLessThan(5000)
  })

  test.each(['(a|b|ca)*c', '(a|bc)*\\d', '.*a.*a.*a.*b', 'a*a*a*b', '(?:a{3}){1000}b', '(?:aa?){3}.*b'])(
    '%s is allowed, and does not take long',
    (pattern) => {
      const started = performance.now()
      expect(fullMatch(pattern, 'target_modules')('a'.repeat(80))).toBe(false)
      expect(performance.now() - started).toBeLessThan(5000)
    },
  )

  test.each([
    ['(.*)\\1b', 'a reference to a group'],
    ['(?P<x>a)(?P=x)', 'a reference to a group'],
    [`${'('.repeat(1000)}a${')'.repeat(1000)}`, 'nested too deep'],
    ['a++', 'possessive'],
    ['(?>a)', 'a group that begins with (?>a'],
    ['(a)?(?(1)b|c)', 'a group that begins with (?(1'],
    ['(?x) a', 'the flags x'],
  ])('%s is refused: %s', (pattern, reason) => {
    const started = performance.now()
    const attempt = () => fullMatch(pattern, 'target_modules')('a'.repeat(300))
    expect(attempt).toThrow(ConfigError)
    expect(attempt).toThrow(reason)
    expect(performance.now() - started).toBeLessThan(5000)
  })

  test('long lists of full names are fine', () => {
    const names = Array.from({ length: 1000 }, (_, i) => `model.layers.${i}.self_attn.q_proj`)
    const started = performance.now()
    const matches = fullMatch(`(?:${names.map((name) => name.replaceAll('.', '\\.')).join('|')})`, 'target_modules')
    expect(names.every(matches)).toBe(true)
    const anywhere = fullMatch(`.*(?:${names.map((name) => name.replaceAll('.', '\\.')).join('|')})`, 'target_modules')
    expect(anywhere(`base.${names[999]}`)).toBe(true)
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
        expect(typeof fullMatch(text, 'target_modules')(name)).toBe('boolean')
      } catch (error) {
        if (!(error instanceof ConfigError)) throw error
      }
    }),
    { numRuns: runs(5000) },
  )
})
