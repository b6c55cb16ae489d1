// Schemas from Pydantic and Zod: the grammar of each accepts a text that the library accepts, and refuses a text that
// the library refuses. Also which related keywords are rewritten, and which are errors.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { describe, expect, it } from 'vitest'
import { attempt } from '../../src/core/base/errors.js'
import { Random } from '../../src/core/base/random.js'
import { Grammars, loadLibrary, type TextGrammar } from '../../src/run/schemas/grammars.js'
import { checkedSchema } from '../../src/run/schemas/schemas.js'

const isInstalled = (() => {
  try {
    const { resolve } = createRequire(import.meta.url)
    return ['@mlc-ai/web-xgrammar', 'ajv', 'ajv-formats'].every((name) => resolve(name) !== '')
  } catch {
    return false
  }
})()

interface Case {
  schema: object
  valid: unknown
  invalid: unknown
}
const casesOf = (name: string): [string, Case][] =>
  Object.entries(JSON.parse(readFileSync(`tests/golden/schemas/${name}.json`, 'utf8')).cases)

/** A vocabulary of single bytes and an end token. */
const vocabulary = {
  tokens: [...Array.from({ length: 256 }, (_, i) => String.fromCharCode(i)), '</s>'],
  spelling: 'raw',
}

async function accepts(schema: string, value: unknown): Promise<boolean> {
  const grammar = await new Grammars(vocabulary as never).start(schema, [256])
  const takes = await takesText(grammar, JSON.stringify(value))
  grammar.dispose()
  return takes
}

async function takesText(grammar: TextGrammar, text: string): Promise<boolean> {
  for (const byte of new TextEncoder().encode(text)) {
    await grammar.prepare()
    const open = grammar.masked(new Float32Array(257))
    if (open[byte] !== 0) return false
    grammar.accept(byte)
  }
  await grammar.prepare()
  return grammar.masked(new Float32Array(257))[256] === 0
}

const require = createRequire(import.meta.url)
// Decimals as Pydantic and Zod count them: by division in binary, 0.07 would not be a multiple of 0.01.
const ajv = isInstalled && require('ajv-formats')(new (require('ajv/dist/2020.js').default)({ multipleOfPrecision: 6 }))

/** Which texts a grammar takes, from one compiled grammar. */
async function takerOf(schema: object) {
  const grammars = new Grammars(vocabulary as never)
  const text = checkedSchema(schema)
  return async (written: string) => {
    const grammar = await grammars.start(text, [256])
    const takes = await takesText(grammar, written)
    grammar.dispose()
    return takes
  }
}

describe.skipIf(!isInstalled)('the library takes', () => {
  it.each(['pydantic', 'zod'])('30 schemas of %s', { timeout: 120_000 }, async (name) => {
    await loadLibrary()
    expect(casesOf(name)).toHaveLength(30)
    for (const [title, { schema, valid, invalid }] of casesOf(name)) {
      const text = checkedSchema(schema)
      expect([title, await accepts(text, valid), await accepts(text, invalid)]).toEqual([title, true, false])
    }
  })

  it('formats, with the numbers of days that months have', async () => {
    const cases: [string, string[], string[]][] = [
      ['date', ['2026-02-28', '2026-04-30'], ['2026-02-30', '2026-04-31', '2026-00-10', '26-01-01']],
      ['time', ['23:59:59Z', '00:00:00.5Z'], ['24:00:00Z', '12:60:00Z']],
      ['date-time', ['2026-02-28T00:00:00Z'], ['2026-02-28 00:00:00Z', '2026-02-28']],
      ['email', ['a.b+c@d.org'], ['a@b', '@d.org', 'a@d.org.']],
      ['uri', ['http://localhost:8000/', 'https://a.b/c?d=e'], ['a.b', 'ftp://a.b']],
      ['uuid', ['9f8b7c6d-5e4f-4a3b-8c2d-1e0f9a8b7c6d'], ['9f8b7c6d5e4f4a3b8c2d1e0f9a8b7c6d']],
      ['ipv4', ['255.255.255.255'], ['256.1.1.1', '1.1.1']],
      ['ipv6', ['2001:db8:0:0:0:0:0:1'], ['2001:db8']],
      ['duration', ['P1D', 'PT5M30S', 'P3Y6M4DT12H30M5S', 'P2W'], ['P', 'PT', 'P1', '1D', 'P1DT', 'P1W2D']],
      ['hostname', ['a', 'localhost', 'a-b.example.org'], ['-a', 'a-.b', 'a..b', 'a_b', 'a.']],
    ]
    for (const [format, valid, invalid] of cases) {
      const text = checkedSchema({ type: 'string', format })
      const check = ajv.compile({ type: 'string', format })
      for (const value of valid) expect([format, value, await accepts(text, value)]).toEqual([format, value, true])
      for (const value of valid) expect([format, value, check(value)]).toEqual([format, value, true])
      for (const value of invalid) expect([format, value, await accepts(text, value)]).toEqual([format, value, false])
    }
  })
})

const BOUNDS = [
  0, 1, -1, 5, 0.1, 0.3, -0.05, 0.005, 12.5, 99.99, 1000, 123456.789, -273.15, 9007199254740992, 1e-9, 3e17,
]
const STEPS = [1000, 100, 10, 1, 0.1, 0.01, 0.001, 0.5, 0.25, 0.2, 0.05, 5, 20]
/** As JSON is printed, without an exponent, and with as many digits as any number may have. */
const isPlain = (text: string) => /^-?(0|[1-9]\d{0,18})(\.\d{1,17})?$/.test(text)

/** Numbers at a border, and one unit of the last printed digit, of a step and of binary precision beside it. */
function around(border: number): string[] {
  const bits = (by: bigint) =>
    new Float64Array(BigInt64Array.of(new BigInt64Array(Float64Array.of(border).buffer)[0] + by).buffer)[0]
  const places = String(border).split('.')[1]?.length ?? 0
  const units = [1, 0.1, 10 ** -places, 10 ** -(places + 1), 0.05, 1e-12, 1e-17].flatMap((unit) => [
    border + unit,
    border - unit,
  ])
  const numbers = [border, ...units, ...(border === 0 ? [] : [bits(1n), bits(-1n)])].map(String)
  return [...numbers, `${border}0000000001`, `${border}.00000000000000001`, `${Math.trunc(border)}.29999999999999999`]
}

describe.skipIf(!isInstalled)(
  'numbers: what ajv refuses is refused, and what is printed plainly and valid is taken',
  () => {
    const disagreements = async (schema: object, texts: readonly string[]) => {
      const [takes, check] = [await takerOf(schema), ajv.compile(schema)]
      const wrong: string[] = []
      let valid = 0
      for (const text of texts.filter(isPlain)) {
        const [isTaken, isValid] = [await takes(text), check(JSON.parse(text))]
        // What is not as it would be printed may be refused: 1.0 of an integer, or digits that no double has.
        const isPrinted = text === JSON.stringify(JSON.parse(text))
        if (isTaken ? !isValid : isValid && isPrinted) wrong.push(`${text}: taken ${isTaken}, valid ${isValid}`)
        if (isValid) valid++
      }
      return { wrong, valid }
    }

    it('at each border and beside it', { timeout: 60_000 }, async () => {
      for (const [i, border] of BOUNDS.entries()) {
        const other = BOUNDS[(i + 3) % BOUNDS.length]
        const [low, high] = [Math.min(border, other), Math.max(border, other)]
        for (const type of ['number', 'integer']) {
          for (const bounds of [
            ...['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'].map((key) => ({ [key]: border })),
            { minimum: low, maximum: high },
            { exclusiveMinimum: low, exclusiveMaximum: high },
          ]) {
            const schema = { type, ...bounds }
            if (attempt(() => checkedSchema(schema)).problems.length > 0) continue
            const texts = Object.values(bounds).flatMap(around)
            expect([schema, (await disagreements(schema, texts)).wrong]).toEqual([schema, []])
          }
        }
      }
    })

    it('at random, 10,000 times, with steps', { timeout: 120_000 }, async () => {
      const random = new Random(11, 'numbers')
      const pick = <T>(list: readonly T[]) => list[Math.floor(random.uniform() * list.length)]
      let [tried, valid] = [0, 0]
      for (let round = 0; tried < 10_000; round++) {
        const type = pick(['number', 'number', 'integer'])
        const step = round % 2 === 0 ? undefined : pick(STEPS)
        // Of larger numbers, ajv takes nearly all for multiples.
        const known = BOUNDS.filter((bound) => step === undefined || bound < 1e9)
        const [a, b] = [pick(known), pick(known)].sort((x, y) => x - y)
        const keys = [pick(['minimum', 'exclusiveMinimum']), pick(['maximum', 'exclusiveMaximum'])]
        const bounds = {
          ...(random.uniform() < 0.8 && { [keys[0]]: a }),
          ...(random.uniform() < 0.8 && { [keys[1]]: b }),
        }
        const schema = { type, ...bounds, ...(step !== undefined && { multipleOf: step }) }
        if (attempt(() => checkedSchema(schema)).problems.length > 0) continue
        const texts = Array.from({ length: 100 }, () => {
          const value = a + (random.uniform() * 1.4 - 0.2) * (b - a || 2)
          const places = Math.floor(random.uniform() * 5)
          const multiple = step !== undefined && random.uniform() < 0.6 ? Math.round(value / step) * step : value
          return random.uniform() < 0.8 ? String(Number(multiple.toFixed(places))) : String(value)
        }).filter(isPlain)
        tried += texts.length
        const found = await disagreements(schema, texts)
        valid += found.valid
        expect([schema, found.wrong]).toEqual([schema, []])
      }
      expect(valid).toBeGreaterThan(3000)
    })

    it('without bounds: 19 digits, 17 after the point, 3 in the exponent, and none is infinite', async () => {
      const takes = await takerOf({ type: 'array', items: { type: 'number' } })
      for (const text of ['1e21', '-0.5', '1.5E-7', `${'9'.repeat(19)}.${'1'.repeat(17)}`, '9e289', '1e-300'])
        expect([text, await takes(`[${text}]`)]).toEqual([text, !/e-3/.test(text)])
      for (const text of ['1'.repeat(20), `0.${'1'.repeat(18)}`, '1e1000', '9e290', '01', '.5', '1.'])
        expect([text, await takes(`[${text}]`)]).toEqual([text, false])
    })
  },
)

it.skipIf(!isInstalled)('no line break outside strings, and at most one space', async () => {
  for (const schema of [
    { type: 'object' },
    { type: 'object', properties: { a: { type: 'array', items: {} } }, required: ['a'] },
  ]) {
    const takes = await takerOf(schema)
    expect(await takes('{ "a": [1, {"b" :"c\\n"} ] }')).toBe(true)
    for (const text of ['{"a":  [1]}', '{"a":[1,\n2]}', '{"a":[\t1]}', '{\n"a":[1]}', '{"a":["\n"]}'])
      expect([text, await takes(text)]).toEqual([text, false])
  }
  const takes = await takerOf({ type: 'string', minLength: 1, maxLength: 3 })
  expect([await takes('"a b"'), await takes('"a\tb"')]).toEqual([true, false])
})

it.skipIf(!isInstalled)('a schema is compiled again after the library could not be opened', async () => {
  let failures = 1
  const flaky = {
    spelling: 'raw',
    get tokens() {
      if (failures-- > 0) throw new Error('not now')
      return vocabulary.tokens
    },
  }
  const grammars = new Grammars(flaky as never)
  await expect(grammars.start('{"type":"object"}', [256])).rejects.toThrow('not now')
  const grammar = await grammars.start('{"type":"object"}', [256])
  grammar.dispose()
})

const kind = (value: string, more: object = {}) => {
  return { type: 'object', properties: { kind: { const: value }, ...more }, required: ['kind'] }
}

it('branches that exclude each other, and objects side by side, are written in other words', () => {
  const of = (schema: object) => JSON.parse(checkedSchema(schema))
  expect(of({ oneOf: [{ type: 'string' }, { type: 'integer' }] })).toEqual({
    anyOf: [{ type: 'string' }, { type: 'integer' }],
  })
  expect(of({ oneOf: [{ const: 1 }, { enum: [2, 3] }] }).anyOf).toHaveLength(2)
  expect(of({ oneOf: [kind('a'), kind('b')] }).anyOf).toHaveLength(2)
  const defs = { A: kind('a'), B: { type: 'object', properties: { x: { type: 'integer' } }, required: ['x'] } }
  expect(of({ allOf: [{ $ref: '#/$defs/A' }, { $ref: '#/$defs/B' }], $defs: defs })).toMatchObject({
    ...{ type: 'object', required: ['kind', 'x'] },
    properties: { kind: { const: 'a' }, x: { type: 'integer' } },
  })
  expect(of({ allOf: [{ $ref: '#/$defs/A' }], description: 'x', $defs: defs }).$ref).toBe('#/$defs/A')
})

it.each<[string, object]>([
  ['schema.oneOf', { oneOf: [{ type: 'number' }, { type: 'integer' }] }],
  ['schema.oneOf', { oneOf: [kind('a'), { type: 'object', properties: { kind: { const: 'b' } } }] }],
  ['schema.oneOf', { oneOf: [kind('a'), kind('a')] }],
  ['schema.allOf', { allOf: [kind('a', { x: true }), kind('b')] }],
  ['schema.allOf', { allOf: [{ type: 'string' }, { minLength: 1 }] }],
  ['schema.format', { type: 'string', format: 'idn-hostname' }],
  ['schema.format', { type: 'string', format: 'email', maxLength: 6 }],
  ['schema.not', { not: { type: 'string' } }],
  ['schema.propertyNames', { type: 'object', propertyNames: { pattern: '^a$' } }],
  ['schema.uniqueItems', { type: 'array', uniqueItems: true }],
])('%s is refused of %j', (where, schema) => {
  expect(() => checkedSchema(schema)).toThrow(where)
})
