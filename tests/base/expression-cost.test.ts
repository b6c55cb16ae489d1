// Which regular expressions JavaScript's engine can be slow at.

import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { costOfRegExp } from '../../src/base/expressions/cost.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { loadTokenizer, makeTokenizer } from '../../src/text/tokenizer.js'
import { THOROUGH } from '../thorough.js'

/** Of published tokenizers, as @huggingface/tokenizers gives them to JavaScript. */
const PUBLISHED: [name: string, expression: RegExp][] = [
  ['GPT-2', /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu],
  [
    'Llama 3',
    /(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu,
  ],
  [
    'Qwen 2',
    /(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu,
  ],
  [
    'o200k',
    /[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu,
  ],
  [
    'DeepSeek V3',
    /[!"#$%&'()*+,\-./:;<=>?@[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu,
  ],
  ['digits from the right', /\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))/gu],
  ['BLOOM', / ?[^(\s|.,!?…。，、।۔،)]+/gu],
  ['CLIP', /'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+/gu],
  ['camel case', /(?:[A-Z][a-z]*)+/gu],
  ['spaces', / {2,}/gu],
]

describe('costOfRegExp', () => {
  it.each(PUBLISHED)('has nothing against the expression of %s', (_, expression) => {
    expect(costOfRegExp(expression)).toBeUndefined()
  })

  it.each([
    /(a+)+$/,
    /(a*)*b/,
    /(a|a)*b/,
    /(a|ab|b)*c/,
    /(?:\w+\s?)*$/u,
    /(\p{L}|\p{Lu})+!/u,
    /(?:a{1,30})*b/,
    /(?:\s+|x)*y/,
    /x(?=(a+)+$)/,
    /(?<!(a+)+)x/,
    /([\p{L}\p{N}]+ ?)+\n/gu,
    /((ab)*|(ba)*a?)*c/,
    /(a?b?a?)*c/,
  ])('refuses %s, which takes twice the time for each character more', (expression) => {
    expect(costOfRegExp(expression)).toBe('repeats inside of repeats can read a text in ever more ways')
  })

  it.each([/\s*\s*\s*x/, /[\s\S]*[\s\S]*[\s\S]*\u{10ffff}/u, /a*(?:b?a*)a*(?=c)/])('refuses %s', (expression) => {
    expect(costOfRegExp(expression)).toContain('repeats in a row')
  })

  it.each([/(a)\1/, /(?<x>a)\k<x>/u, /a{5000}/, new RegExp(`${'('.repeat(200)}a${')'.repeat(200)}`)])(
    'refuses what it cannot tell: %s',
    (expression) => {
      expect(costOfRegExp(expression)).toMatch(/reference|large|deep/)
    },
  )

  it.each([
    /(?:a|aa){24}b/,
    new RegExp('a?'.repeat(60) + 'a'.repeat(60)),
    /(?:a?){40}b/,
    /(?:ab|abab){24}c/,
    /(?:a|b|ab){30}c/,
    /(?:\d|\d\d){30}x/u,
    /(?:a{1,2}){24}b/,
    /(?:a{1,2}b?){40}c/,
    /(?:(?:a|aa){3}){9}b/,
    /x(?=(?:a|aa){24}b)/,
    new RegExp(`${'(?:a|ab)(?:bc|c)?'.repeat(30)}d`),
    new RegExp(`${'(?:x|y|xy)'.repeat(30)}z`),
  ])('refuses %s, whose ways double without a loop', (expression) => {
    expect(costOfRegExp(expression)).toBe('it can read a text in more than 65536 ways')
  })

  it.each([
    /\p{N}{1,3}/gu,
    /a{0,200}b/,
    /(?:a|aa){3}b/,
    /[a-z]{1,64}[0-9]{1,64}x/,
    /(?:ab?){0,100}c/,
    /(?:a|b){100}c/,
    /[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]{0,20}[\p{Ll}]{1,20}(?:'s|'t)?/u,
    new RegExp(Array.from({ length: 100 }, (_, i) => `'${i}`).join('|')),
  ])('takes %s, which is fast', (expression) => {
    const start = performance.now()
    expect(costOfRegExp(expression)).toBeUndefined()
    expect(performance.now() - start).toBeLessThan(5000)
    for (const text of ['a', 'ab', '1', 'z']) expression.test(`${text.repeat(2000)}!`)
    expect(performance.now() - start).toBeLessThan(10_000)
  })

  it('tells of ways that only longer texts have', () => {
    const options = [...'baa'].map((character) => ({ character, quantifier: '' }))
    const other = ['a', 'a+', 'b+'].map(([character, quantifier = '']) => ({ character, quantifier }))
    expect(costOfRegExp(/(baa|aa+b+)*c/)).toBeDefined()
    expect(isSlowOnLongerTexts([options, other])).toBe(true)
  })

  it('passes none that can read a text in ever more ways, and refuses no other', () => {
    const part = fc.record({ character: fc.constantFrom('a', 'b'), quantifier: fc.constantFrom('', '', '*', '+', '?') })
    const bodies = fc.array(fc.array(part, { minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 3 })
    const counts = { refused: 0, passed: 0 }
    fc.assert(
      fc.property(bodies, (options) => {
        const source = options.map((parts) => parts.map(({ character, quantifier }) => character + quantifier).join(''))
        const isPassed = costOfRegExp(new RegExp(`(?:${source.join('|')})*c`)) === undefined
        counts[isPassed ? 'passed' : 'refused']++
        const most = Math.max(...TEXTS.map((text) => waysToRead(text.repeat(60).slice(0, 60), options)))
        // Two ways for each six characters are a thousand; all others have one way, or as many as places.
        const isSlow = most >= 1000 || (!isPassed && isSlowOnLongerTexts(options))
        expect(!isSlow, source.join('|')).toBe(isPassed)
      }),
      { numRuns: THOROUGH ? 50 : 25 },
    )
    expect(Math.min(counts.refused, counts.passed)).toBeGreaterThan(THOROUGH ? 2 : 1)
  })
})

/** All texts of some length. */
const textsOf = (length: number) =>
  Array.from({ length: 2 ** length }, (_, bits) =>
    Array.from({ length }, (_, i) => ((bits >> i) & 1 ? 'a' : 'b')).join(''),
  )

/** All texts of up to six characters, to be repeated. */
const TEXTS = [1, 2, 3, 4, 5, 6].flatMap(textsOf)

/** Some expressions have two ways for each nine characters: `baa|aa+b+`. Two for each twelve are a million. */
function isSlowOnLongerTexts(options: { character: string; quantifier: string }[][]): boolean {
  return [7, 8, 9, 10, 11, 12].some((length) =>
    textsOf(length).some((text) => waysToRead(text.repeat(240 / length + 1).slice(0, 240), options) > 100_000),
  )
}

/** In how many ways rounds of the options, none of them empty, make up a text. */
function waysToRead(text: string, options: { character: string; quantifier: string }[][]): number {
  const { length } = text
  const ways = new Float64Array(length + 1)
  ways[0] = 1
  for (let start = 0; start < length; start++) {
    if (ways[start] === 0) continue
    for (const parts of options) {
      let ends = new Float64Array(length + 1)
      ends[start] = ways[start]
      for (const { character, quantifier } of parts) {
        const after = new Float64Array(length + 1)
        const isEndless = quantifier === '*' || quantifier === '+'
        for (let at = start; at <= length; at++) {
          if (ends[at] === 0) continue
          if (quantifier === '*' || quantifier === '?') after[at] += ends[at]
          for (let end = at; end < length && text[end] === character; end++) {
            after[end + 1] += ends[at]
            if (!isEndless) break
          }
        }
        ends = after
      }
      for (let end = start + 1; end <= length; end++) ways[end] += ends[end]
    }
  }
  return Math.max(...ways)
}

describe('tokenizers', () => {
  const definition = () => JSON.parse(readFileSync('tests/golden/models/llama-genai/tokenizer.json', 'utf8'))

  it('with an expression that can take too long are refused by name', () => {
    const split = { type: 'Split', pattern: { Regex: '(a+)+$' }, behavior: 'Isolated', invert: false }
    const wrong = { ...definition(), pre_tokenizer: { type: 'Sequence', pretokenizers: [split] } }
    expect(() => makeTokenizer(wrong, {}, 'folder')).toThrow(
      'folder/tokenizer.json: it has a regular expression that can take too long: repeats inside of repeats can read a text in ever more ways; got (a+)+',
    )
    const normalizer = { type: 'Replace', pattern: { Regex: '(a|a)*b' }, content: '' }
    expect(() => makeTokenizer({ ...definition(), normalizer }, {}, 'folder')).toThrow('can take too long')
    const decoder = { type: 'Replace', pattern: { Regex: '(a|a)*b' }, content: '' }
    expect(() => makeTokenizer({ ...definition(), decoder }, {}, 'folder')).toThrow('can take too long')
  })

  it.each([
    'models/union-3m',
    ...['models/gpt2-optimum', 'models/qwen2-optimum', 'models/llama-genai', 'graphs/bart', 'graphs/t5'].map(
      (name) => `tests/golden/${name}`,
    ),
    'tests/golden/text-classification/encoder',
  ])('of %s are taken', async (folder) => {
    const tokenizer = await loadTokenizer(new NodeDirectory(folder))
    expect(tokenizer.encode('A whale').length).toBeGreaterThan(0)
  })

  it('whose decoder is damaged give errors of that file', () => {
    const wrong = {
      ...definition(),
      decoder: { type: 'Replace', pattern: { String: 'a' }, content: { toString: null } },
    }
    let error: unknown
    try {
      const tokenizer = makeTokenizer(wrong, {}, 'folder')
      tokenizer.decode(tokenizer.encode('a whale'))
    } catch (reason) {
      error = reason
    }
    expect(error).toMatchObject({ code: 'FORMAT', where: 'folder/tokenizer.json' })
  })
})
