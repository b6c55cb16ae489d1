// Requests to the server: every answer is a success or an error in OpenAI's form, and none has status 500.

import { cpSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createHandler, folderOfAdapters } from '../../../dist/serve/node/entry.js'
import { root } from '../inputs.mjs'
import { mutateJson } from '../mutate.mjs'

const ADAPTERS = join(root, 'tests/golden/peft')
const TOOL = { type: 'function', function: { name: 'f', parameters: { type: 'object', properties: {} } } }
const SCHEMA = {
  type: 'object',
  properties: { a: { enum: ['x', 'y'] }, b: { type: 'array', items: { type: 'integer' }, maxItems: 3 } },
  required: ['a'],
}
const SAMPLED = {
  temperature: 0.5,
  top_p: 0.9,
  top_k: 5,
  min_p: 0.1,
  repetition_penalty: 1.1,
  seed: 3,
  n: 2,
  stop: ['.'],
}
const BODIES = {
  '/v1/completions': [
    { model: 'peft', prompt: 'And the people', max_tokens: 3, temperature: 0 },
    { model: 'base', prompt: [[5, 6], [7]], max_tokens: 2, echo: true, logprobs: 2 },
    { prompt: ['a', 'b'], stream: true, stream_options: { include_usage: true }, max_tokens: 2, ...SAMPLED },
    { prompt: 'a', adapter: { peft: 0.5, f32: 0.5 }, max_tokens: 2, user: 'me' },
  ],
  '/v1/chat/completions': [
    { messages: [{ role: 'user', content: 'Who?' }], max_completion_tokens: 3, logprobs: true, top_logprobs: 2 },
    {
      messages: [
        { role: 'system', content: [{ type: 'text', text: 'a' }] },
        { role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:image/png;base64,iVBORw0KGgo=' } }] },
      ],
      stream: true,
    },
    {
      messages: [
        { role: 'user', content: 'a' },
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ ...TOOL, id: 'c', function: { name: 'f', arguments: '{}' } }],
        },
        { role: 'tool', tool_call_id: 'c', content: '1' },
      ],
      tools: [TOOL],
      tool_choice: 'auto',
      chat_template_kwargs: { a: 1 },
    },
    {
      messages: [{ role: 'user', content: 'a' }],
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema: SCHEMA } },
    },
  ],
  '/v1/responses': [
    { model: 'peft', input: 'Who?', instructions: 'a', max_output_tokens: 3, temperature: 0, include: [] },
    {
      input: [
        { role: 'user', content: [{ type: 'input_text', text: 'a' }] },
        { role: 'user', content: [{ type: 'input_image', image_url: 'data:image/png;base64,iVBORw0KGgo=' }] },
        { type: 'function_call', call_id: 'c', name: 'f', arguments: '{}' },
        { type: 'function_call_output', call_id: 'c', output: '1' },
      ],
      tools: [{ type: 'function', name: 'f', parameters: SCHEMA, strict: true }],
      max_output_tokens: 2,
      stream: true,
    },
    {
      input: 'a',
      text: { format: { type: 'json_schema', name: 'x', schema: SCHEMA } },
      max_output_tokens: 3,
      store: false,
    },
  ],
  '/v1/embeddings': [{ input: ['a', 'b'], encoding_format: 'base64', dimensions: 2 }],
  '/v1/classify': [{ input: 'a' }],
  '/v1/load_lora_adapter': [{ lora_name: 'x', lora_path: 'bf16' }],
  '/v1/unload_lora_adapter': [{ lora_name: 'x' }],
}
const CASES = Object.entries(BODIES).flatMap(([path, bodies]) => bodies.map((body) => JSON.stringify({ path, body })))
const CHAT_TEMPLATE = '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:'

let handler
const failures = []
async function open() {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-fuzz-'))
  cpSync(join(root, 'models/union-3m'), folder, { recursive: true })
  writeFileSync(join(folder, 'chat_template.jinja'), CHAT_TEMPLATE)
  return createHandler({
    model: folder,
    servedModelName: 'base',
    adapters: { peft: join(ADAPTERS, 'f32') },
    resolveAdapter: folderOfAdapters(ADAPTERS),
    maxTokens: 6,
    maxAdapters: 4,
    timeoutSeconds: 10,
    on: { error: (error) => failures.push(error) },
  })
}

function checkError(status, body) {
  const { error } = JSON.parse(body)
  const isRight =
    typeof error?.message === 'string' && typeof error.type === 'string' && 'param' in error && 'code' in error
  if (!isRight) throw new Error(`status ${status} without an error in OpenAI's form: ${body.slice(0, 300)}`)
  if (status >= 500 && error.code !== 'timeout') throw new Error(`status ${status}: ${body.slice(0, 300)}`)
}

async function check(bytes, source) {
  handler ??= open()
  const answer = await handler
  const { path } = JSON.parse(source)
  // Only the body is changed: a wrong path always gets the same answer.
  let body = bytes
  try {
    body = JSON.stringify(JSON.parse(Buffer.from(bytes).toString()).body) ?? ''
  } catch {}
  const headers = { 'content-type': 'application/json' }
  const response = await answer(new Request(`http://localhost${path}`, { method: 'POST', headers, body }))
  const text = await response.text()
  if (response.status !== 200) checkError(response.status, text)
  else if (response.headers.get('content-type') === 'text/event-stream') {
    const events = text.split('\n\n').filter((line) => line !== '' && !line.startsWith(':'))
    if (events.at(-1) !== 'data: [DONE]') throw new Error(`a stream without its end: ${text.slice(-300)}`)
    for (const event of events.slice(0, -1)) {
      const data = event.replace(/^(event: .*\n)?data: /, '')
      if (JSON.parse(data).error) checkError(400, data)
    }
  } else if (/completions|responses$/.test(path)) JSON.parse(text)
  if (failures.length > 0) throw failures.splice(0)[0]
}

export const targets = [
  {
    name: 'requests',
    seeds: () => CASES,
    make: (source) => Buffer.from(source),
    mutate: mutateJson,
    check,
  },
]
