// The forms of calls: what is written is read again, whole and cut at every character.

import { describe, expect, it } from 'vitest'
import { Random } from '../../../src/core/base/random.js'
import type { FunctionCall } from '../../../src/model/text/calls/call.js'
import { CALL_FORMS, callsIn, readAnswer, writeCalls } from '../../../src/model/text/calls/forms.js'
import type { FunctionTool } from '../../../src/model/text/calls/growing-text.js'
import { type AnswerPart, AnswerReader } from '../../../src/model/text/calls/reader.js'

const random = new Random(3, 'calls')
const pick = <T>(items: readonly T[]): T => items[Math.floor(random.uniform() * items.length)]

/** Texts with the marks of each form, quotes, escapes and brackets. */
const MARKS = [
  ...CALL_FORMS.flatMap(({ opens, tokens = [] }) => [...opens, ...tokens]),
  ...[
    '"',
    "'",
    '\\',
    '\n',
    '\\n',
    '{',
    '}',
    '[',
    ']',
    '(',
    ')',
    ',',
    ':',
    '=',
    ' ',
    'é',
    '😀',
    '42',
    'true',
    'None',
    '',
  ],
  ...[
    '</parameter>',
    '\n</parameter>',
    '<parameter=a>',
    '</function>',
    '```',
    '\n```',
    '[ARGS]',
    'call:f{',
    '.',
    '<',
    '>',
  ],
]
const text = () =>
  Array.from({ length: Math.floor(random.uniform() * 4) }, () => pick([...MARKS, 'lamp', 'a b'])).join('')

/** A value with its schema. */
function sample(depth: number): [value: unknown, schema: object] {
  const kind = pick([
    'string',
    'string',
    'integer',
    'number',
    'boolean',
    'null',
    ...(depth < 3 ? ['array', 'object'] : []),
  ])
  if (kind === 'integer') return [Math.floor(random.uniform() * 2000) - 1000, { type: kind }]
  if (kind === 'number') return [pick([0.5, -1.25, 1e21, 3.5e-7, 12]), { type: kind }]
  if (kind === 'boolean') return [random.uniform() < 0.5, { type: kind }]
  if (kind === 'null') return [null, { type: kind }]
  if (kind === 'array')
    return [Array.from({ length: Math.floor(random.uniform() * 3) }, () => sample(depth + 1)[0]), { type: kind }]
  if (kind === 'object') return objectOf(depth + 1)
  return [text(), { type: kind }]
}

function objectOf(depth: number): [Record<string, unknown>, object] {
  const names = ['level', 'name', 'arguments', 'a_b', 'x1', 'parameters', 'to'].filter(() => random.uniform() < 0.4)
  const members = names.map((name) => [name, sample(depth)] as const)
  return [
    Object.fromEntries(members.map(([name, [value]]) => [name, value])),
    { type: 'object', properties: Object.fromEntries(members.map(([name, [, schema]]) => [name, schema])) },
  ]
}

const hasMark = (call: FunctionCall, marks: readonly string[]) => {
  const texts: string[] = []
  JSON.stringify(call, (_, part) => {
    if (typeof part === 'string') texts.push(part)
    return part
  })
  return texts.some((each) => marks.some((mark) => each.includes(mark)))
}

/** What a text between marks, without escapes, cannot always contain. */
const UNHELD: Readonly<Record<string, readonly string[]>> = {
  'function-gemma': ['<escape>'],
  'gemma-4': ['<|"|>'],
  'qwen3-coder': ['</parameter>'],
}

describe.each(CALL_FORMS.map((form) => [form.name, form] as const))('%s', (name, form) => {
  it('reads 1000 calls that it wrote, streamed and cut at every character', () => {
    let refused = 0
    for (let round = 0; round < 1000; round++) {
      const count = form.isSingle ? 1 : 1 + Math.floor(random.uniform() * 3)
      const tools: FunctionTool[] = []
      const calls = Array.from({ length: count }, (_, i): FunctionCall => {
        const [args, parameters] = objectOf(0)
        tools.push({ name: `set_lamp_${i}`, parameters: parameters as Record<string, unknown> })
        return { name: `set_lamp_${i}`, arguments: args }
      })
      let written: string
      try {
        written = writeCalls(form, calls, tools, 'x')
      } catch (error) {
        expect(String(error)).toContain(name)
        expect(calls.some((call) => hasMark(call, UNHELD[name] ?? []))).toBe(true)
        refused++
        continue
      }
      const words = form.opens.length > 0 && round % 3 === 0 ? 'Let me see. ' : ''
      const whole = readAnswer(form, words + written, tools)
      expect(callsIn(whole.calls), written).toEqual(calls)
      const reader = new AnswerReader(form, tools)
      const parts: AnswerPart[] = []
      for (const letter of words + written) parts.push(...reader.read(letter))
      parts.push(...reader.end(words + written))
      expect(reader.content).toBe(words.trim())
      for (const [i, { function: called }] of whole.calls.entries()) {
        const own = parts.filter((part) => part.type !== 'text' && part.index === i)
        expect(own[0]).toMatchObject({ type: 'call', name: called.name })
        expect(own.map((part) => (part.type === 'arguments' ? part.text : '')).join('')).toBe(called.arguments)
      }
      // Cut in two at a random character, and cut off there: no error, and no more calls than there were.
      const at = Math.floor(random.uniform() * written.length)
      const cut = readAnswer(form, written.slice(0, at), tools)
      expect(cut.calls.length).toBeLessThanOrEqual(count)
    }
    expect(refused).toBeLessThan(UNHELD[name] === undefined ? 1 : 100)
  })
})
