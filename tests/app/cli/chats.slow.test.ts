// Chats, batches and mixes on the command line, and the demo.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { MODEL, ONNX, type Outcome, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const adapter = join(root, 'tests', 'golden', 'peft', 'f32')

function documentOf({ code, stdout, stderr }: Outcome) {
  expect(code, stderr).toBe(0)
  return JSON.parse(stdout)
}

describe('chats on the command line', () => {
  const chat = ['--chat-template', join(MODEL, '..', 'data', 'chat.jinja')]
  const ask = ['generate', '--model', MODEL, '--temperature', '0', '--max-new-tokens', '6']
  const question = ['--prompt', 'Who is the captain?']

  it('an adapter that was trained on chats is asked through its template, unless --raw', async () => {
    const out = join(scratch, 'chats')
    const data = [
      '--data',
      join(MODEL, '..', 'data', 'chats.jsonl'),
      '--max-steps',
      '2',
      '--batch-size',
      '2',
      '--learning-rate',
      '5e-4',
    ]
    const trained = await lowrankHere('train', '--model', MODEL, ...data, ...chat, '--out', out)
    expect(trained.stderr).toContain('--prompt "Who is the captain?"')
    const asked = [...ask, '--adapter', out, ...question]
    const plain = await lowrankHere(...asked)
    expect((await lowrankHere(...asked, '--chat')).stdout).toBe(plain.stdout)
    const raw = documentOf(await lowrankHere(...asked, '--raw', '--json'))
    const base = documentOf(await lowrankHere(...ask, ...question, '--json'))
    expect(`${raw.text}\n`).not.toBe(plain.stdout)
    expect(base.text).toBe(raw.text)
    const chats = join(scratch, 'ask.jsonl')
    writeFileSync(
      chats,
      '{"messages": [{"role": "user", "content": "Who is the captain?"}]}\n[{"role": "user", "content": "Hi"}]\n',
    )
    const both = documentOf(await lowrankHere(...ask, '--adapter', out, '--messages', chats, '--json'))
    expect(both.results).toHaveLength(2)
    expect(`${both.results[0].text}\n`).toBe(plain.stdout)
  })

  it('several prompts are one batch, and a mix one text', async () => {
    const two = documentOf(await lowrankHere(...ask, ...question, '--prompt', 'The', '--logprobs', '1', '--json'))
    expect(two.results.map(({ prompt }: { prompt: string }) => prompt)).toEqual(['Who is the captain?', 'The'])
    expect(two.results[1].logprobs[0].top).toHaveLength(1)
    const adapters = ['--adapter', adapter, '--weight', '0.5', '--adapter', adapter, '--weight', '0.5', '--mix']
    const mixed = documentOf(await lowrankHere(...ask, ...question, ...adapters, '--json'))
    expect(mixed.text).toBe(documentOf(await lowrankHere(...ask, ...question, '--adapter', adapter, '--json')).text)
  })

  it.each<[string, string[], number, RegExp]>([
    ['--raw with --chat', [...question, '--raw', '--chat'], 2, /--raw and --chat cannot be used together/],
    ['no template', [...question, '--chat'], 1, /no chat template.*--chat-template/],
    ['no file', ['--messages', 'no.json'], 1, /no.json: no such file/],
    ['no chat', ['--messages', ONNX], 1, /not a chat; expected JSON/],
    ['an empty stop', [...question, '--stop='], 2, /--stop: not valid/],
    ['min-p of 2', [...question, '--min-p', '2'], 2, /--min-p: not valid/],
    ['a weight without adapter', [...question, '--weight', '2'], 2, /--weight W comes after/],
  ])('%s: %s', async (_, args, exit, message) => {
    const { code, stderr } = await lowrankHere(...ask, ...args)
    expect(stderr).toMatch(message)
    expect(code).toBe(exit)
  })
})
