import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { setMember } from '../../src/files/json.js'

describe('setMember', () => {
  test('leaves all else as it is written', () => {
    const text =
      '{\n  "a": 1.0,\n  "text_config": {"dtype": "float16", "eps": 1e-05, "list": [1.0, {"dtype": "x"}]},\n  "dtype": null\n}\n'
    expect(setMember(text, ['dtype'], 'bfloat16')).toBe(text.replace('null', '"bfloat16"'))
    expect(setMember(text, ['text_config', 'dtype'], 'bfloat16')).toBe(text.replace('float16', 'bfloat16'))
    expect(setMember(text, ['text_config', 'list'], 1)).toBe(text.replace('[1.0, {"dtype": "x"}]', '1'))
    expect(setMember(text, ['text_config'], {})).toBe(text.replace(/\{"dtype": "float16".*\}\]\}/, '{}'))
  })

  test('adds what is missing, in the form of the rest', () => {
    expect(setMember('{\n  "a": 1.0\n}\n', ['b'], false)).toBe('{\n  "a": 1.0,\n  "b": false\n}\n')
    expect(setMember('{"a": {}}', ['b'], 'x')).toBe('{"a": {},"b": "x"}')
    expect(setMember(' {} ', ['b'], 2)).toBe(' {"b": 2} ')
  })

  test('keys, and what looks like one in a string or deeper inside', () => {
    const text = '{"x": "\\"b\\": 1, {", "y": {"b": 2, "c": [{"b": 3}]}, "\\u0062": 4, "b\\"": 5}'
    expect(setMember(text, ['b'], 0)).toBe(text.replace('4', '0'))
    expect(setMember(text, ['b"'], 0)).toBe(text.replace('5', '0'))
    expect(setMember(text, ['y', 'b'], 0)).toBe(text.replace('2', '0'))
  })

  test('gives what setting the member of the parsed object gives', () => {
    const key = fc.constantFrom('a', 'b', 'c', 'a"b', '\\', '{', 'é')
    const json = fc.letrec<{ value: unknown }>((tie) => ({
      value: fc.oneof(
        { maxDepth: 3 },
        fc.jsonValue({ maxDepth: 0 }),
        fc.dictionary(key, tie('value')),
        fc.array(tie('value'), { maxLength: 3 }),
      ),
    })).value
    const space = fc.constantFrom(undefined, 2, '\t')
    fc.assert(
      fc.property(fc.dictionary(key, json), key, fc.option(key), json, space, (object, outer, inner, value, indent) => {
        const holder = object[outer]
        const isInside = inner !== null && typeof holder === 'object' && holder !== null && inner in holder
        const path = isInside ? [outer, inner] : [outer]
        const expected = structuredClone(object)
        if (isInside) (expected[outer] as Record<string, unknown>)[inner] = value
        else expected[outer] = value
        fc.pre(!Array.isArray(holder) || !isInside)
        expect(JSON.parse(setMember(JSON.stringify(object, null, indent), path, value))).toEqual(
          JSON.parse(JSON.stringify(expected)),
        )
      }),
      { numRuns: 300 },
    )
  })
})
