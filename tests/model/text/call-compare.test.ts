// Right or wrong: calls against wanted ones, by values, and as the checker of BFCL does it.

import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { schemaProblem } from '../../../src/core/base/json-schema.js'
import { possibleCalls } from '../../../src/model/text/calls/bfcl.js'
import { judgeCalls, sameCalls } from '../../../src/model/text/calls/compare.js'
import type { FunctionTool } from '../../../src/model/text/calls/growing-text.js'
import { goldenPath } from '../../golden.js'

const call = (name: string, args: string | object) => ({
  id: 'a',
  type: 'function' as const,
  function: { name, arguments: typeof args === 'string' ? args : JSON.stringify(args) },
})

interface Line {
  id: string
  kind: string
  functions: FunctionTool[]
  answers: string
  calls: [string, string][]
  valid: boolean
}
const lines: Line[] = JSON.parse(readFileSync(goldenPath('bfcl.json'), 'utf8'))

describe('match: bfcl', () => {
  it('has enough lines of both verdicts', () => {
    const valid = lines.filter((line) => line.valid).length
    expect(lines.length).toBeGreaterThanOrEqual(200)
    expect(Math.min(valid, lines.length - valid)).toBeGreaterThanOrEqual(lines.length / 5)
    expect(new Set(lines.map(({ kind }) => kind)).size).toBeGreaterThan(10)
  })

  it('gives the verdicts of bfcl-eval', () => {
    const other = lines.filter(({ functions, answers, calls, valid }) => {
      const wanted = { tools: functions, calls: [], answers: possibleCalls(answers)! }
      const made = calls.map(([name, args]) => call(name, args))
      return judgeCalls(made, wanted, 'bfcl').isRight !== valid
    })
    expect(other).toEqual([])
  })

  it('takes the wanted calls as the only possible ones if a record has no answers', () => {
    const tools = [
      { name: 'f', parameters: { type: 'object', properties: { a: { type: 'string' }, b: { type: 'object' } } } },
    ]
    const calls = [{ name: 'f', arguments: { a: 'New York', b: { c: [1, { d: 2 }] } } }]
    const judged = (args: object) => judgeCalls([call('f', args)], { tools, calls }, 'bfcl').isRight
    expect(judged({ a: 'new-york', b: { c: [1, { d: 2 }] } })).toBe(true)
    expect(judged({ a: 'new york', b: { c: [1, { d: 3 }] } })).toBe(false)
    expect(judged({ a: 'new york' })).toBe(false)
  })
})

const LAMP = {
  name: 'set_lamp',
  parameters: {
    type: 'object',
    properties: {
      room: { type: 'string' },
      level: { type: 'integer', default: 5 },
      fade: { type: 'object', properties: { seconds: { type: 'number', default: 1 } } },
    },
    required: ['room'],
  },
}

describe('match: values', () => {
  const judged = (args: string | object, wanted: object) =>
    judgeCalls([call('set_lamp', args)], { tools: [LAMP], calls: [{ name: 'set_lamp', arguments: wanted as never }] })

  it.each([
    ['equal', { room: 'hall' }, { room: 'hall' }, true],
    ['another order of members', { level: 3, room: 'hall' }, { room: 'hall', level: 3 }, true],
    ['a default on one side', { room: 'hall', level: 5 }, { room: 'hall' }, true],
    ['a default on the other', { room: 'hall' }, { room: 'hall', level: 5 }, true],
    ['a default within an object', { room: 'hall', fade: {} }, { room: 'hall', fade: { seconds: 1 } }, true],
    ['a number written otherwise', '{"room": "hall", "level": 3.0}', { room: 'hall', level: 3 }, true],
    ['spaces at the ends', { room: ' hall\n' }, { room: 'hall' }, true],
    ['composed letters', { room: 'cafe\u0301' }, { room: 'caf\u00e9' }, true],
    ['other letters', { room: 'Hall' }, { room: 'hall' }, false],
    ['a number as text', { room: 'hall', level: '3' }, { room: 'hall', level: 3 }, false],
    ['an argument more', { room: 'hall', other: 1 }, { room: 'hall' }, false],
    ['no JSON', '{"room": ', { room: 'hall' }, false],
  ])('%s', (_, args, wanted, isRight) => expect(judged(args, wanted).isRight).toBe(isRight))

  it('leaves the order of calls free, and counts them', () => {
    const calls = [1, 2].map((level) => ({ name: 'set_lamp', arguments: { room: 'a', level } }))
    const made = (...levels: number[]) => levels.map((level) => call('set_lamp', { room: 'a', level }))
    const of = (...levels: number[]) => judgeCalls(made(...levels), { tools: [LAMP], calls })
    expect([of(2, 1), of(1, 1), of(1, 2, 2)].map(({ isRight }) => isRight)).toEqual([true, false, false])
    expect([of(1, 1), of(1)].map(({ hasRightFunctions }) => hasRightFunctions)).toEqual([true, false])
    expect(sameCalls(made(1, 2), made(2, 1))).toBe(true)
  })

  it('says why a call breaks its schema', () => {
    const problem = (args: string | object) => judged(args, {}).problems[0]
    expect(problem({ room: 'hall', level: 3 })).toBeUndefined()
    expect(problem({ level: 3 })).toBe('room: missing')
    expect(problem({ room: 'hall', level: '3' })).toBe('level: expected integer, got "3"')
    expect(problem({ room: 'a', fade: { seconds: true } })).toBe('fade.seconds: expected number, got true')
    expect(problem('{')).toBe('its arguments are no JSON object')
    expect(judgeCalls([call('turn', {})], { tools: [LAMP], calls: [] }).problems).toEqual(['no function is named turn'])
  })
})

it.each([
  [{ type: 'string', enum: ['a', 'b'] }, 'a', 'c'],
  [{ const: { a: 1, b: 2 } }, { b: 2, a: 1 }, { a: 1 }],
  [{ anyOf: [{ type: 'null' }, { type: 'integer', minimum: 2 }] }, 2, 1],
  [{ allOf: [{ type: 'string' }, { pattern: '^a' }] }, 'ab', 'b'],
  [{ type: 'array', items: { $ref: '#/$defs/n' }, minItems: 1, $defs: { n: { type: 'number' } } }, [1.5], ['1']],
  [{ type: 'array', prefixItems: [{ type: 'string' }], items: false }, ['a'], ['a', 1]],
  [{ type: 'object', properties: { a: {} }, additionalProperties: false }, { a: null }, { b: 1 }],
  [{ type: 'object', additionalProperties: { type: 'boolean' } }, { a: true }, { a: 1 }],
  [{ type: ['string', 'null'], maxLength: 1 }, '\u{1f600}', 'ab'],
  [{ type: 'integer', exclusiveMaximum: 3 }, 2, 3],
])('%j takes %j and not %j', (schema, good, bad) => {
  expect(schemaProblem(good, schema)).toBeUndefined()
  expect(schemaProblem(bad, schema)).toBeDefined()
})

it('takes any value for a schema without keywords', () => {
  fc.assert(fc.property(fc.jsonValue(), (value) => schemaProblem(value, {}) === undefined))
})
