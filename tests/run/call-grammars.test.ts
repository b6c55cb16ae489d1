// The grammars of calls take what each form writes, if it fits the schemas, and nothing else.

import { expect, it } from 'vitest'
import { CALL_FORMS } from '../../src/model/text/calls/forms.js'
import { callStructure, noCalls } from '../../src/model/text/calls/tags.js'
import { Grammars } from '../../src/run/schemas/grammars.js'
import { tagText } from '../../src/run/schemas/schemas.js'

const schema = {
  type: 'object',
  properties: {
    room: { type: 'string' },
    level: { type: 'integer' },
    kind: { enum: ['warm', 'cold'] },
    on: { type: 'boolean' },
    parts: { type: 'array', items: { type: 'object', properties: { at: { type: 'number' } }, required: ['at'] } },
  },
  required: ['room'],
  additionalProperties: false,
}
const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`)
const RIGHT = [
  { room: 'desk' },
  { room: 'desk "A"', level: -12 },
  { room: 'hall', level: 3, kind: 'warm', on: true, parts: [{ at: 1.5 }, { at: 2 }] },
  { room: 'x', parts: [] },
]
const WRONG = [
  {},
  { level: 3 },
  { room: 'desk', level: 'high' },
  { room: 'desk', kind: 'hot' },
  { room: 'a', parts: [{}] },
]

/** Says whether a grammar takes a text, which ends there. */
function acceptance(structure: object) {
  const grammars = new Grammars({ spelling: 'byte_fallback', tokens: ['</s>', ...bytes] })
  return async (text: string) => {
    const grammar = await grammars.start(tagText(structure), [0])
    try {
      // Id 0 ends the text.
      for (const id of [...[...new TextEncoder().encode(text)].map((byte) => byte + 1), 0]) {
        await grammar.prepare()
        const allowed = grammar.masked(new Float32Array(257))
        if (allowed[id] !== 0) return false
        grammar.accept(id)
      }
      return true
    } finally {
      grammar.dispose()
    }
  }
}

const FORMS = CALL_FORMS.map((form) => [form.name, form] as const)
const FUNCTIONS = [
  { name: 'set_lamp', schema },
  { name: 'stop', schema: { type: 'object', properties: {} } },
]

it.each(FORMS)('%s', async (name, form) => {
  const accepts = acceptance(callStructure(form, { functions: FUNCTIONS, isForced: true, isSingle: false }))
  const write = (args: object, called = 'set_lamp') => form.write([{ name: called, arguments: args as never }])
  // In the order of the schema, which JSON grammars ask for. Raw texts of XML may be anything.
  for (const args of RIGHT) expect([args, await accepts(write(args))]).toEqual([args, true])
  for (const args of WRONG) expect([args, await accepts(write(args))]).toEqual([args, false])
  expect(await accepts(write({}, 'stop'))).toBe(true)
  expect(await accepts(write({}, 'unknown'))).toBe(false)
  expect(await accepts('Good day.')).toBe(false)
  if (!form.isSingle) {
    const calls = RIGHT.slice(0, 2).map((args) => ({ name: 'set_lamp', arguments: args }))
    expect([name, await accepts(form.write(calls))]).toEqual([name, true])
  }
})

it.each(FORMS)('%s: words, or a call that fits', async (_, form) => {
  const accepts = acceptance(callStructure(form, { functions: FUNCTIONS, isForced: false, isSingle: false }))
  expect(await accepts('Good day, <b>.')).toBe(true)
  expect(await accepts(form.write([{ name: 'set_lamp', arguments: { room: 'desk' } }]))).toBe(true)
  expect(await accepts(form.write([{ name: 'unknown', arguments: {} }]))).toBe(false)
})

it.each(FORMS)('%s: words without a call', async (_, form) => {
  const accepts = acceptance(noCalls(form))
  const words = ['', 'Good day.', 'a < b, [1] and {2} – “so”\n', '\n\nfunc <too']
  for (const text of words) expect([text, await accepts(text)]).toEqual([text, true])
  // What begins a call may begin twice. Letters beyond ASCII are all the same.
  for (const open of form.opens.filter((each) => form.words?.includes(each) !== true)) {
    expect(await accepts(`a ${/^[\0-\x7f]*$/.test(open) ? open.slice(0, -1) : open[0]}`)).toBe(true)
    expect(await accepts(`a ${open[0]}${open}`)).toBe(false)
  }
  expect(await accepts(form.write([{ name: 'stop', arguments: {} }]))).toBe(false)
})
