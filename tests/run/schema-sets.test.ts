// Schemas from Pydantic and Zod: the grammar of each accepts a text that the library accepts, and refuses a text that
// the library refuses. Also which related keywords are rewritten, and which are errors.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { describe, expect, it } from 'vitest'
import { Grammars, loadLibrary } from '../../src/run/schemas/grammars.js'
import { checkedSchema } from '../../src/run/schemas/schemas.js'

const isInstalled = (() => {
  try {
    createRequire(import.meta.url).resolve('@mlc-ai/web-xgrammar')
    return true
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
  try {
    for (const byte of new TextEncoder().encode(JSON.stringify(value))) {
      await grammar.prepare()
      const open = grammar.masked(new Float32Array(257))
      if (open[byte] !== 0) return false
      grammar.accept(byte)
    }
    await grammar.prepare()
    return grammar.masked(new Float32Array(257))[256] === 0
  } finally {
    grammar.dispose()
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
    ]
    for (const [format, valid, invalid] of cases) {
      const text = checkedSchema({ type: 'string', format })
      for (const value of valid) expect([format, value, await accepts(text, value)]).toEqual([format, value, true])
      for (const value of invalid) expect([format, value, await accepts(text, value)]).toEqual([format, value, false])
    }
  })
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
  ['schema.format', { type: 'string', format: 'hostname' }],
  ['schema.format', { type: 'string', format: 'email', maxLength: 6 }],
  ['schema.not', { not: { type: 'string' } }],
  ['schema.propertyNames', { type: 'object', propertyNames: { pattern: '^a$' } }],
  ['schema.uniqueItems', { type: 'array', uniqueItems: true }],
])('%s is refused of %j', (where, schema) => {
  expect(() => checkedSchema(schema)).toThrow(where)
})
