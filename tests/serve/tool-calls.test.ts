// Calls of functions in what models write.

import { expect, it } from 'vitest'
import { certainText, parseToolCalls } from '../../src/serve/tool-calls.js'

const call = (name: string, args: object) => ({ type: 'function', function: { name, arguments: JSON.stringify(args) } })

it('reads Hermes’ and Llama’s forms, and leaves other texts alone', () => {
  const hermes =
    'Let me look.\n<tool_call>\n{"name": "a", "arguments": {"x": {"y": 1}}}\n</tool_call>\n<tool_call>{"name":"b"}</tool_call>'
  expect(parseToolCalls(hermes)).toMatchObject({
    content: 'Let me look.',
    calls: [call('a', { x: { y: 1 } }), call('b', {})],
  })
  expect(parseToolCalls('<|python_tag|>{"name": "c", "parameters": {"z": []}}').calls).toMatchObject([
    call('c', { z: [] }),
  ])
  for (const text of ['{"name": 1}', '<tool_call>{"name": </tool_call>', 'no', '{"answer": 42}', '']) {
    expect(parseToolCalls(text)).toEqual({ content: text, calls: [] })
  }
})

it('never sends a part of a call', () => {
  const text = 'So: <tool_call>{"name":"a"}</tool_call>'
  for (let length = 0; length <= text.length; length++)
    expect('So: '.startsWith(certainText(text.slice(0, length)))).toBe(true)
  expect(certainText('a < b')).toBe('a < b')
  expect(certainText('{"name"')).toBe('')
})
