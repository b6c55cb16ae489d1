// Calls of functions in the texts of models, in whole and in growing texts.

import { expect, it } from 'vitest'
import { HERMES } from '../../../src/model/text/calls/hermes.js'
import { LLAMA } from '../../../src/model/text/calls/llama.js'
import { type AnswerPart, AnswerReader } from '../../../src/model/text/calls/reader.js'

const call = (name: string, args: string) => ({ type: 'function', function: { name, arguments: args } })

const formOf = (text: string) => (/parameters|answer/.test(text) ? LLAMA : HERMES)

function readWhole(text: string) {
  const reader = new AnswerReader(formOf(text))
  reader.end(text)
  return { content: reader.content, calls: reader.calls }
}

const CALLING =
  'Let me look.\n<tool_call>\n{"name": "a", "arguments": {"x": {"y": "}"}}}\n</tool_call>\n<tool_call>{"name":"b"}</tool_call>'

it('reads Hermes’ and Llama’s forms, and leaves other texts alone', () => {
  expect(readWhole(CALLING)).toMatchObject({
    content: 'Let me look.',
    calls: [call('a', '{"x": {"y": "}"}}'), call('b', '{}')],
  })
  expect(readWhole('<|python_tag|>{"name": "c", "parameters": {"z": []}}')).toMatchObject({
    content: '',
    calls: [call('c', '{"z": []}')],
  })
  // The members of a call may come in another order.
  expect(readWhole('<tool_call>{"arguments": {"x": 1}, "name": "d"}</tool_call>').calls).toMatchObject([
    call('d', '{"x":1}'),
  ])
  expect(readWhole('{"parameters": {"x": 1}, "name": "e"}').calls).toMatchObject([call('e', '{"x":1}')])
  for (const text of ['{"name": 1}', '<tool_call>{"name": </tool_call>', 'no', '{"answer": 42}', '', ' a < b \n']) {
    expect(readWhole(text)).toEqual({ content: text, calls: [] })
  }
})

it.each([
  CALLING,
  '{"name": "c", "parameters": {"z": "\\"}"}}',
  'a <tool_call> b',
  '  words \n\n of <some',
  '<tool_call>{"name": "a", "arguments": {"cut": tr',
  '<tool_call>{"name": "a", "arguments": {"tag": "</tool_call>"}}</tool_call> after <tool_call>{"name": "b"}</tool_call>',
  '<tool_call>{"name": "a", "arguments": {"quote": "open}}</tool_call> after <tool_call>no</tool_call> ',
  '<|python_tag|>{"name": "c", "parameters": {"z": 1}} dropped',
])('gives parts of %j that together are the whole', (text) => {
  const reader = new AnswerReader(formOf(text))
  const parts: AnswerPart[] = []
  for (const letter of text) parts.push(...reader.read(letter))
  parts.push(...reader.end(text))
  const { content, calls } = readWhole(text)
  expect(parts.map((part) => (part.type === 'text' ? part.text : '')).join('')).toBe(content)
  for (const [i, { function: called }] of calls.entries()) {
    const own = parts.filter((part) => part.type !== 'text' && part.index === i)
    expect(own[0]).toMatchObject({ type: 'call', name: called.name })
    expect(own.map((part) => (part.type === 'arguments' ? part.text : '')).join('')).toBe(called.arguments)
  }
  expect(reader.calls).toHaveLength(calls.length)
})

it('streams arguments while they are written, and keeps to one call if asked', () => {
  const reader = new AnswerReader(HERMES, [], 1)
  expect(reader.read('<tool_call>{"name": "a", "arguments": {"x": 1')).toMatchObject([
    { type: 'call', name: 'a' },
    { type: 'arguments', text: '{"x": 1' },
  ])
  reader.end(CALLING.slice(13))
  expect(reader.calls).toHaveLength(1)
})
