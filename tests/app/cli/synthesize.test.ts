// lowrank data synthesize: chats from a model here, with an adapter, and from a server.

import { mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { expect, it, onTestFinished, vi } from 'vitest'
import { lowrankHere } from './in-process.js'
import { MODEL, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const data = join(scratch, 'prompts.jsonl')
const records = [
  { prompt: 'Who is it?' },
  { question: 'Where?', answer: 'Here.' },
  { prompt: [{ role: 'user', content: 'When?' }] },
  {
    messages: [
      { role: 'user', content: 'Why?' },
      { role: 'assistant', content: 'Because.' },
      { role: 'user', content: 'And then?' },
      { role: 'assistant', content: 'Nothing.' },
    ],
  },
]
writeFileSync(data, records.map((record) => `${JSON.stringify(record)}\n`).join(''))
const template = join(root, 'models/data/chat.jinja')

const asked = [
  [{ role: 'user', content: 'Who is it?' }],
  [{ role: 'user', content: 'Where?' }],
  [{ role: 'user', content: 'When?' }],
  [...records[3].messages!.slice(0, 3)],
]
const chatsIn = (stdout: string) =>
  stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line).messages)

async function serve(answer: (body: { messages: object[] }) => unknown) {
  const bodies: Record<string, unknown>[] = []
  const keys: unknown[] = []
  const server = createServer(async (request, response) => {
    let text = ''
    for await (const chunk of request) text += chunk
    bodies.push(JSON.parse(text))
    keys.push(request.headers.authorization)
    response.end(JSON.stringify(answer(bodies.at(-1) as never)))
  })
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => void server.close())
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`, bodies, keys }
}

const choice = (content: unknown, finish_reason = 'stop') => ({ choices: [{ message: { content }, finish_reason }] })

it('writes the answers of a server, without thoughts, and leaves out cut and empty answers', async () => {
  const { url, bodies, keys } = await serve(({ messages }) => {
    const { content } = messages.at(-1) as { content: string }
    if (content === 'Where?') return choice('There is', 'length')
    return choice(content === 'When?' ? '<think>Nobody knows.</think> ' : `<think>Hm.</think>\nTo ${content}`)
  })
  vi.stubEnv('LOWRANK_TEACHER_KEY', 'sesame')
  onTestFinished(() => void vi.unstubAllEnvs())
  const options = ['--teacher-model', 'large', '--system', 'Be brief.', '--temperature', '0.5', '--max-new-tokens', '9']
  const { code, stdout, stderr } = await lowrankHere('data', 'synthesize', data, '--teacher', url, ...options)
  expect([code, stderr]).toEqual([0, expect.stringMatching(/2 answers left out.*Wrote 2 chats/s)])
  expect(chatsIn(stdout)).toEqual([
    [...asked[0], { role: 'assistant', content: 'To Who is it?' }],
    [...asked[3], { role: 'assistant', content: 'To And then?' }],
  ])
  const sorted = bodies.map(({ messages }) => messages as { content: string }[])
  expect(sorted).toHaveLength(4)
  for (const [first] of sorted) expect(first).toEqual({ role: 'system', content: 'Be brief.' })
  expect(bodies[0]).toMatchObject({ model: 'large', temperature: 0.5, max_completion_tokens: 9 })
  expect(new Set(keys)).toEqual(new Set(['Bearer sesame']))
})

it('writes the answers of a model here and its adapter, which train reads', async () => {
  const adapter = join(scratch, 'adapter')
  const lessons = join(scratch, 'lessons.jsonl')
  const taught = {
    messages: [
      { role: 'user', content: 'Who is it?' },
      { role: 'assistant', content: 'It is the king.' },
    ],
  }
  writeFileSync(lessons, `${JSON.stringify(taught)}\n`.repeat(4))
  const more = ['--model', MODEL, '--chat-template', template]
  const run = ['--max-steps', '25', '--learning-rate', '1e-2', '--batch-size', '4', '--target-modules', 'all-linear']
  expect((await lowrankHere('train', ...more, '--data', lessons, ...run, '--out', adapter)).code).toBe(0)
  const options = ['--teacher', MODEL, '--adapter', adapter, '--temperature', '0', '--max-new-tokens', '24']
  const { code, stdout } = await lowrankHere('data', 'synthesize', data, ...options)
  expect(code).toBe(0)
  expect(chatsIn(stdout)[0]).toEqual([...asked[0], { role: 'assistant', content: 'It is the king.' }])
  const written = join(scratch, 'written.jsonl')
  writeFileSync(written, stdout)
  const checked = await lowrankHere('data', written, ...more, '--json')
  expect([checked.code, JSON.parse(checked.stdout).task]).toEqual([0, 'causal-lm'])
})

it('leaves a folder with the name of the command to lowrank data', async () => {
  const folder = join(scratch, 'synthesize')
  mkdirSync(folder)
  writeFileSync(join(folder, 'a.jsonl'), '{"text":"The sea"}\n')
  expect((await lowrankHere('data', folder, '--json')).code).toBe(0)
})

it.each([
  ['a server without a model', ['--teacher', 'http://127.0.0.1:1/v1'], 2, /--teacher-model NAME is missing/],
  ['a model here with a name', ['--teacher', MODEL, '--teacher-model', 'large'], 2, /--teacher-model needs/],
  [
    'a server with an adapter',
    ['--teacher', 'http://x/v1', '--teacher-model', 'm', '--adapter', 'a'],
    2,
    /--adapter needs/,
  ],
  ['a model without a chat template', ['--teacher', MODEL], 1, /no chat template/],
  ['no teacher', [], 2, /--teacher .* is missing/],
])('refuses %s', async (_, options, exit, message) => {
  const { code, stdout, stderr } = await lowrankHere('data', 'synthesize', data, ...options)
  expect([code, stdout]).toEqual([exit, ''])
  expect(stderr).toMatch(message)
})

it('ends with an error if the server sends no message, or a record has no prompt', async () => {
  const { url } = await serve(() => ({ choices: [] }))
  const server = ['--teacher', url, '--teacher-model', 'm']
  const silent = await lowrankHere('data', 'synthesize', data, ...server)
  expect([silent.code, silent.stderr]).toEqual([1, expect.stringMatching(/the teacher sent no message/)])
  const texts = join(scratch, 'texts.jsonl')
  writeFileSync(texts, '{"text":"The sea"}\n')
  const wrong = await lowrankHere('data', 'synthesize', texts, ...server)
  expect([wrong.code, wrong.stderr]).toEqual([1, expect.stringMatching(/texts\.jsonl.*line 1.*no prompt to answer/s)])
})
