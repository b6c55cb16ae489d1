import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { FormatError } from '../../src/base/errors.js'
import { type JsonOptions, type JsonValue, parseJson, parseJsonEntries, toPlain } from '../../src/formats/json.js'
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

test('hands over the entries of an object in order, and refuses a second one of the same name', () => {
  const entriesOf = (text: string) => {
    const entries: [string, JsonValue][] = []
    parseJsonEntries(new TextEncoder().encode(text), 'file', (key, value) => void entries.push([key, value]))
    return entries
  }
  expect(entriesOf(' {"b": [1], "a": {"x": 2}} ')).toEqual([
    ['b', [1]],
    ['a', new Map([['x', 2]])],
  ])
  expect(entriesOf('{}')).toEqual([])
  for (const text of ['{"a": 1, "a": 1}', '[1]', '{"a": 1} {', '{"a": 1,}', '']) {
    expect(() => entriesOf(text), text).toThrow(FormatError)
  }
})

test('errors say where', () => {
  expect(() => parse('{"a": tru}')).toThrow('file.json: not valid JSON at character 6; expected a value, got "t"')
  expect(() => parse('{"a": 1')).toThrow('file.json: not valid JSON at character 7; expected "}", got the end')
})

test('refuses values without end, which take many times the memory of their text', () => {
  expect(() => parse(`[${'0,'.repeat(1 << 22)}0]`)).toThrow('file.json: JSON of more than 4194304 values')
})
