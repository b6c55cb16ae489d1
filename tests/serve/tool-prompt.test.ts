// Tools for chat templates that do not read them: the system message describes them, and calls are found in the answer.

import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, MemoryDirectory } from 'lowrank'
import { createHandler } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { withKnownTools } from '../../src/model/text/calls/known-tools.js'
import { parseChat } from '../../src/model/text/chat.js'
import { loadChatTemplate } from '../../src/model/text/chat-template.js'
import { enginesHere } from '../engines-here.js'

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-tools-'))
beforeAll(enginesHere)
afterAll(() => rmSync(scratch, { recursive: true }))

const PLAIN =
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
const READING = `{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}${PLAIN}`
const TOOL = {
  type: 'function',
  function: { name: 'tide', description: 'Says how high the sea is.', parameters: { type: 'object' } },
}
const ROUND = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: 'How high is the sea?' },
  {
    role: 'assistant',
    content: null,
    tool_calls: [{ id: 'a', type: 'function', function: { name: 'tide', arguments: '{"at": "noon"}' } }],
  },
  { role: 'tool', tool_call_id: 'a', content: '3 m' },
]

async function modelWith(name: string, template: string) {
  const folder = join(scratch, name)
  cpSync('models/union-3m', folder, { recursive: true })
  writeFileSync(join(folder, 'chat_template.jinja'), template)
  return loadModel(folder)
}

describe('a template that does not read tools', () => {
  it('gets them in the system message, with the calls and results of the chat', async () => {
    const { messages } = parseChat({ messages: ROUND }, 'x')
    const load = async (text: string) => (await loadChatTemplate(new MemoryDirectory({}, 'x'), text))!
    const { text } = (await load(PLAIN)).render(messages, { tools: [TOOL] }, 'x')
    expect(text).toMatch(/^<system>Be brief\.\n\nYou are a function calling AI model\./)
    expect(text).toContain(`<tools>\n${JSON.stringify(TOOL)}\n</tools>`)
    expect(text).toContain('<assistant><tool_call>\n{"name": "tide", "arguments": {"at": "noon"}}\n</tool_call>\n')
    expect(text).toContain('<user><tool_response>\n3 m\n</tool_response>\n')
    expect((await load(READING)).render(messages, { tools: [TOOL] }, 'x').text).toMatch(/^TOOLS/)
  })

  it('so that the model reads them over HTTP, in both forms; one that reads tools is left alone', async () => {
    const tokens = async (name: string, template: string, path: string, body: object) => {
      const model = await modelWith(name, template)
      const handler = await createHandler({ model, on: {} })
      const request = new Request(`http://localhost${path}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ ...body, [path.endsWith('responses') ? 'max_output_tokens' : 'max_tokens']: 1 }),
      })
      const { usage, error } = await (await handler(request)).json()
      await handler.close()
      await model.close()
      return error?.message ?? usage.prompt_tokens ?? usage.input_tokens
    }
    const short = { type: 'function', function: { name: 't' } }
    const messages = [{ role: 'user', content: 'a' }]
    const path = '/v1/chat/completions'
    const without = await tokens('a', '{% for m in messages %}{{ m.content }}{% endfor %}', path, { messages })
    const read = await tokens('b', READING, path, { messages, tools: [short] })
    expect([typeof without, read > without, read - without < 60]).toEqual(['number', true, true])
    // Hermes' message is longer than the model's context of 256 tokens.
    expect(await tokens('c', PLAIN, path, { messages, tools: [short, TOOL, TOOL] })).toMatch(
      /^This model.s maximum context length is 256 tokens/,
    )
    const response = {
      input: 'a',
      tools: [
        { type: 'function', name: 't' },
        { type: 'function', name: 'tide', description: 'a'.repeat(600) },
      ],
    }
    expect(await tokens('d', PLAIN, '/v1/responses', response)).toMatch(
      /^This model.s maximum context length is 256 tokens/,
    )
  })
})

it('checks tools against those that the model was trained with, and leaves them out of the prompt', async () => {
  const known = [TOOL.function, { ...TOOL.function, name: 'wind' }]
  const handler = await createHandler({ model: await modelWith('known', withKnownTools(READING, known)), on: {} })
  const ask = async (body: object) => {
    const request = new Request('http://localhost/v1/chat/completions', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ messages: [{ role: 'user', content: 'a' }], max_tokens: 2, ...body }),
    })
    const answer = await handler(request)
    return { status: answer.status, body: await answer.json() }
  }
  const other = { type: 'function', function: { name: 'sail', parameters: { type: 'object' } } }
  const changed = { type: 'function', function: { ...TOOL.function, parameters: { type: 'object', required: ['at'] } } }
  expect(await ask({ tools: [other] })).toMatchObject({
    status: 400,
    body: { error: { message: expect.stringContaining('not trained with the function sail') } },
  })
  expect(await ask({ tools: [changed] })).toMatchObject({
    status: 400,
    body: { error: { message: expect.stringContaining('parameters of tide') } },
  })
  const plain = await ask({})
  expect(plain.status).toBe(200)
  for (const body of [{ tools: [TOOL] }, { tools: [TOOL], tool_choice: 'none' }]) {
    expect(await ask(body)).toMatchObject({
      status: 200,
      body: { usage: { prompt_tokens: plain.body.usage.prompt_tokens } },
    })
  }
  await handler.close()
})
