import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { FormatError } from '../../src/api/node.js'
import { type JsonObject, type JsonOptions, parseJson, toPlain } from '../../src/files/json.js'
import { runs } from '../thorough.js'

const parse = (text: string, options?: JsonOptions) => parseJson(new TextEncoder().encode(text), 'file.json', options)

test('agrees with JSON.parse on whatever JSON.stringify writes', () => {
  fc.assert(
    fc.property(fc.jsonValue({ stringUnit: 'binary' }), fc.constantFrom(undefined, 2, '\t'), (value, indent) => {
      const text = JSON.stringify(value, null, indent)
      expect(toPlain(parse(` ${text}\r\n`))).toEqual(JSON.parse(text))
    }),
  )
})

test('agrees with JSON.parse on what is no JSON', () => {
  const pieces = fc.array(
    fc.constantFrom(...'{}[]:,"\\ \n\u0001', '1', '-', '.5', 'e3', '01', 'true', 'nul', '"a"', 'Infinity'),
  )
  fc.assert(
    fc.property(pieces, (parts) => {
      const text = parts.join('')
      let expected: unknown
      let isValid = true
      try {
        expected = JSON.parse(text)
      } catch {
        isValid = false
      }
      if (isValid) expect(toPlain(parse(text))).toEqual(expected)
      else expect(() => parse(text)).toThrow(FormatError)
    }),
    { numRuns: runs(3000) },
  )
})

describe('refuses what JSON.parse lets through', () => {
  test.each([
    ['a key that occurs twice', '{"a": 1, "a": 2}', /"a" occurs twice/],
    ['a key that occurs twice in another spelling', '{"a": 1, "\\u0061": 2}', /"a" occurs twice/],
    ['half a surrogate pair', '{"\\ud800": 1}', /half a surrogate pair/],
    ['nesting without end', `${'['.repeat(100_000)}${']'.repeat(100_000)}`, /deeper than 64/],
  ])('%s', (_, text, message) => {
    expect(() => parse(text)).toThrow(FormatError)
    expect(() => parse(text)).toThrow(message)
  })

  test('bytes that are not UTF-8, and a byte-order mark', () => {
    expect(() => parseJson(Uint8Array.of(0x22, 0xff, 0x22), 'f')).toThrow(/f: not valid UTF-8/)
    expect(() => parseJson(Uint8Array.of(0xef, 0xbb, 0xbf, 0x7b, 0x7d), 'f')).toThrow(FormatError)
  })

  test.each(['1.0', '1e2', '-1', '-0', '1E0'])('%s where whole numbers are asked for', (number) => {
    expect(parse(number)).toBe(Number(number))
    expect(() => parse(number, { wholeNumbers: true })).toThrow(/in plain digits, got/)
  })
})

test('__proto__ is a key like any other', () => {
  const value = toPlain(parse('{"__proto__": {"polluted": true}, "constructor": 1}')) as Record<string, unknown>
  expect(Object.hasOwn(value, '__proto__')).toBe(true)
  expect(Object.getPrototypeOf(value)).toBe(Object.prototype)
  expect(({} as Record<string, unknown>).polluted).toBeUndefined()
})

test('keeps the order of keys that are numbers', () => {
  expect([...(parse('{"b": 1, "1": 2, "0": 3}') as JsonObject).keys()]).toEqual(['b', '1', '0'])
})

test('strings may hold what parts values', () => {
  expect(parse('["{", "a,b", "\\\\", "\\"]"]')).toEqual(['{', 'a,b', '\\', '"]'])
})

test('errors say where', () => {
  expect(() => parse('{"a": tru}')).toThrow(/^file\.json: not valid JSON \(.*"a": tru/)
  expect(() => parse('{"a": 1')).toThrow(/^file\.json: not valid JSON \(.*position 7/)
})

test('refuses values without end, which take many times the memory of their text', () => {
  expect(() => parse(`[${'0,'.repeat(1 << 22)}0]`)).toThrow('file.json: JSON of more than 4194304 values')
})
