// toolsInAdapter: the list in the template, the normal form of functions, and grammars that leave calls out.

import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import {
  addKnownTools,
  checkKnownTools,
  knownToolsIn,
  withKnownTools,
  withoutKnownTools,
} from '../../../src/model/text/calls/known-tools.js'
import { loadChatTemplate } from '../../../src/model/text/chat-template.js'

const ring = (times: object = { type: 'integer' }, more: object = {}) => ({
  name: 'ring',
  description: 'Rings #} the {% bell %}',
  parameters: { type: 'object', properties: { times, how: { enum: ['a', 'b'] } }, required: ['times'], ...more },
})
const TEMPLATE = `{%- if tools %}{{- 'TOOLS <tool_call>' }}{%- endif %}{%- for m in messages %}{{- m.content }}{%- endfor %}`

it('keeps functions in a template, which leaves tools out of prompts', async () => {
  const text = withKnownTools(TEMPLATE, [ring()])
  expect(knownToolsIn(text)).toEqual([ring()])
  expect(withoutKnownTools(text)).toBe(TEMPLATE)
  expect(knownToolsIn(withKnownTools(text, []))).toEqual([])
  const template = (await loadChatTemplate(new MemoryDirectory(), text))!
  expect(template.knownTools).toEqual([ring()])
  expect(template.calls.name).toBe('hermes')
  const tools = [{ type: 'function', function: ring() }]
  expect(template.render([{ role: 'user', content: 'hi' }], { tools }, 'prompt').text).toBe('hi')
  const other = [{ type: 'function', function: { name: 'sail' } }]
  expect(() => template.render([{ role: 'user', content: 'hi' }], { tools: other }, 'prompt')).toThrow(
    /prompt, tools.*not trained with the function sail/s,
  )
})

it('names the form of calls by an option', async () => {
  const template = await loadChatTemplate(new MemoryDirectory(), TEMPLATE, { toolForm: 'pythonic' })
  expect(template!.calls.name).toBe('pythonic')
})

describe('the normal form', () => {
  const closed = { additionalProperties: false, $schema: 'x', title: 'T', strict: true }
  it.each([
    ['notes and closed objects', ring({ type: 'integer', description: 'often', default: 1 }, closed)],
    ['order', { parameters: Object.fromEntries(Object.entries(ring().parameters).reverse()), name: 'ring' }],
    ['upper case', ring({ type: 'INTEGER' })],
    ['the bounds of a number', ring({ type: 'integer', minimum: Number.MIN_SAFE_INTEGER })],
    ['a reference', ring({ $ref: '#/$defs/n' }, { $defs: { n: { type: 'integer' } } })],
  ])('leaves out %s', (_, same) => {
    checkKnownTools([ring()], [same], 'tools')
  })

  it.each([
    ['a type', ring({ type: 'number' })],
    ['a deep type', ring({ type: 'array', items: { type: 'string' } })],
    ['what is required', ring(undefined, { required: [] })],
    [
      'an enum',
      {
        ...ring(),
        parameters: { ...ring().parameters, properties: { times: { type: 'integer' }, how: { enum: ['a'] } } },
      },
    ],
    ['a name', { ...ring(), name: 'rang' }],
  ])('tells %s', (_, other) => {
    expect(() => checkKnownTools([ring()], [other], 'tools')).toThrow(/tools.*(ring|rang)/s)
  })

  it('grows by records, and refuses another type of a name', () => {
    const known = [ring()]
    addKnownTools(known, [{ name: 'sail' }, ring()], 'line 2')
    expect(known.map(({ name }) => name)).toEqual(['ring', 'sail'])
    expect(() => addKnownTools(known, [ring({ type: 'string' })], 'line 3')).toThrow(/line 3.*parameters of ring/s)
  })
})
