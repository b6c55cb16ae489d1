// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// Texts that fit a JSON schema.

import { createRequire } from 'node:module'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Model } from '../../src/api/node.js'
import { ModelSession } from '../../src/run/model-session.js'
import { openModel } from './models.js'

const isInstalled = (() => {
  try {
    createRequire(import.meta.url).resolve('@mlc-ai/web-xgrammar')
    return true
  } catch {
    return false
  }
})()

const PERSON = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 1, maxLength: 6 },
    age: { type: 'integer', minimum: 3, maximum: 99 },
    tags: { type: 'array', items: { enum: ['a', 'b', 'c'] }, minItems: 1, maxItems: 2 },
    more: { anyOf: [{ type: 'null' }, { type: 'boolean' }] },
  },
  required: ['name', 'age', 'tags'],
  additionalProperties: false,
}
const TREE = {
  $ref: '#/$defs/node',
  $defs: {
    node: {
      type: 'object',
      properties: { kind: { const: 'leaf' }, left: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] } },
      required: ['kind', 'left'],
    },
  },
}
const isPerson = (value: any) =>
  /^.{1,6}$/su.test(value.name) &&
  Number.isInteger(value.age) &&
  value.age >= 3 &&
  value.age <= 99 &&
  [1, 2].includes(value.tags.length) &&
  value.tags.every((tag: string) => 'abc'.includes(tag)) &&
  [undefined, null, true, false].includes(value.more) &&
  Object.keys(value).every((key) => ['name', 'age', 'tags', 'more'].includes(key))
const isNode = (value: any): boolean =>
  value.kind === 'leaf' && Object.keys(value).join() === 'kind,left' && (value.left === null || isNode(value.left))
const CASES: [string, object, (value: any) => boolean][] = [
  ['an object', PERSON, isPerson],
  ['a part that holds itself', TREE, isNode],
  [
    'a list',
    { type: 'array', prefixItems: [{ type: 'boolean' }, { const: 'x' }], items: false },
    ([a, b, ...rest]) => {
      return typeof a === 'boolean' && b === 'x' && rest.length === 0
    },
  ],
  ['an expression', { type: 'string', pattern: '^[a-c]{2,4}-[0-9]+$' }, (value) => /^[a-c]{2,4}-[0-9]+$/.test(value)],
  [
    'whole numbers between bounds',
    {
      type: 'array',
      items: { type: ['integer', 'null'], exclusiveMinimum: -3, maximum: 120 },
      minItems: 3,
      maxItems: 3,
    },
    (list) =>
      list.every((one: unknown) => one === null || (Number.isInteger(one) && Number(one) > -3 && Number(one) <= 120)),
  ],
  ['one of several', { enum: ['yes', 'no', 3, null] }, (value) => ['yes', 'no', 3, null].includes(value)],
]

describe.skipIf(!isInstalled)('generate({ schema })', () => {
  let session: ModelSession<Model>
  beforeAll(async () => {
    session = await ModelSession.open(await openModel('models/union-3m'), {}, true)
  })
  afterAll(() => session.dispose())

  it.each(CASES)('%s: every text parses and fits', async (_, schema, fits) => {
    const prompts = ['The king said', 'We', '{', 'A list: ', 'Name', 'In the beginning', 'Yes', '3']
    const options = { schema, maxNewTokens: 120, temperature: 1.2, seed: 5 }
    const results = await session.generate(prompts, options)
    const ended = results.filter(({ finish }) => finish === 'eos')
    expect(ended.length).toBeGreaterThan(2)
    for (const { text } of results) {
      const value = JSON.parse(text)
      expect([text, fits(value)]).toEqual([text, true])
    }
  })

  it('any object, beside texts without a schema, which stay as they are', async () => {
    const plain = { maxNewTokens: 30, temperature: 0 }
    const alone = await session.generate('And the people', plain)
    const options = { schema: { type: 'object' }, maxNewTokens: 30, temperature: 0.7, seed: 2 }
    const [object, beside] = await Promise.all([
      session.generate('And the people', options),
      session.generate('And the people', plain),
    ])
    expect(object.text).toMatch(/^\{/)
    expect(typeof JSON.parse(object.text)).toBe('object')
    expect(beside.text).toBe(alone.text)
  })

  it.each([[], ['zzz']])(
    'a text that is closed before its limit says so, and has a score for each token',
    async (...stop) => {
      const limits = { maxNewTokens: 24, stop, logprobs: 0, temperature: 1.2, seed: 3 }
      const schema = {
        type: 'object',
        properties: { a: { type: 'string' }, b: { type: 'string' } },
        required: ['a', 'b'],
      }
      const results = await session.generate(
        Array.from({ length: 8 }, () => 'The king'),
        { schema, ...limits },
      )
      for (const { text, finish, tokens, logprobs } of results) {
        expect([text, Object.keys(JSON.parse(text)).slice(0, 2)]).toEqual([text, ['a', 'b']])
        expect([finish, logprobs!.length]).toEqual([tokens === 24 ? 'max-new-tokens' : finish, tokens])
      }
      expect(results.filter(({ finish }) => finish === 'max-new-tokens').length).toBeGreaterThan(3)
    },
  )
})

it.each([
  [{ type: 'string', format: 'idn-email' }, /schema\.format.*cannot be kept to/],
  [{ oneOf: [{ type: 'string' }, { minLength: 1 }] }, /schema\.oneOf/],
  [{ type: 'thing' }, /schema\.type: unknown/],
  [{ $ref: '#/$defs/none' }, /schema\.\$ref: no such part/],
  [{ type: 'string', pattern: '^(a$' }, /schema\.pattern/],
  [{ type: 'string', pattern: '^(a{100}){100}$' }, /too large together/],
  [{ type: 'array', maxItems: 5000 }, /too large together/],
  [{ enum: Array.from({ length: 600 }, (_, i) => i) }, /too many parts/],
  [{ enum: ['a'.repeat(40_000)] }, /too many bytes/],
  [Array.from({ length: 40 }).reduce<object>((items) => ({ type: 'array', items }), {}), /too deep/],
  [{ type: 'integer', minimum: '3' }, /schema\.minimum: not a number/],
  [{ minimum: 1 }, /schema\.minimum: only numbers/],
  [{ type: 'string', maximum: 1 }, /schema\.maximum: only numbers/],
  [{ type: 'number', enum: [1, 2], maximum: 1 }, /schema\.maximum: only numbers/],
  [{ type: 'number', multipleOf: 0.3 }, /schema\.multipleOf: .*this step/],
  [{ type: 'number', multipleOf: -1 }, /schema\.multipleOf: .*this step/],
  // No number of 19 digits and 17 after the point.
  [{ type: 'number', minimum: 1e30 }, /schema: no number fits/],
  [{ type: 'number', exclusiveMinimum: 1, exclusiveMaximum: 1 }, /schema: no number fits/],
  [{ type: 'integer', minimum: 1.2, maximum: 1.8 }, /schema: no number fits/],
  [{ type: 'number', minimum: 0.1, maximum: 0.4, multipleOf: 0.5 }, /schema: no number fits/],
  [{ type: 'integer', minimum: 5, maximum: 1 }, /schema\.minimum: above maximum/],
  [{ type: 'string', minLength: 5, maxLength: 1 }, /schema\.minLength: above maxLength/],
  [{ type: 'array', minItems: 5, maxItems: 1 }, /schema\.minItems: above maxItems/],
  // References that lead back to themselves without a character.
  [{ $ref: '#' }, /refers to itself/],
  [{ anyOf: [{ type: 'null' }, { $ref: '#' }] }, /refers to itself/],
  [
    { $defs: { a: { $ref: '#/$defs/b' }, b: { anyOf: [{ $ref: '#/$defs/a' }] } }, $ref: '#/$defs/a' },
    /refers to itself/,
  ],
  [{ type: 'array', items: { $ref: '#/$defs/a' }, $defs: { a: { $ref: '#/$defs/a' } } }, /refers to itself/],
])('refuses %j', async (schema, message) => {
  const { checkedSchema } = await import('../../src/run/schemas/schemas.js')
  expect(() => checkedSchema(schema)).toThrow(message)
})
