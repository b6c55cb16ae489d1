// Runs that never end: their callers get an error within seconds, and the command line exits.

import { execFileSync, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { root, start } from '../app/cli/lowrank.js'

let folder: string
let model: string
let data: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lowrank-hung-'))
  model = join(folder, 'model')
  execFileSync(process.execPath, [join(root, 'scripts/stress/hanging-model.mjs'), model])
  data = join(folder, 'data.jsonl')
  // Short texts come first, so that a training makes a step before a run hangs.
  const texts = ['a b', 'a b', 'a b', 'a b', 'one two three '.repeat(40)]
  await writeFile(data, texts.map((text) => JSON.stringify({ text })).join('\n'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

/** Runs a program that prints a line of JSON and then ends. */
async function told(program: string): Promise<Record<string, unknown>> {
  const source = `
    const lowrank = await import(${JSON.stringify(new URL('../../src/api/node.js', import.meta.url))})
    const folder = ${JSON.stringify(model)}
    const errorOf = (promise) => promise.then(() => 'no error', ({ name, message }) => ({ name, message }))
    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
    const tell = async (result) => {
      await new Promise((resolve) => process.stdout.write(JSON.stringify(result) + '\\n', resolve))
      process.kill(process.pid, 'SIGKILL')
    }
    ${program}`
  const file = join(folder, `${Math.random()}.mjs`)
  await writeFile(file, source)
  const child = spawn(process.execPath, [file], { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  for await (const chunk of child.stdout) text += chunk
  return JSON.parse(text)
}

const HUNG = {
  name: 'RuntimeError',
  message: expect.stringMatching(/^ONNX Runtime: a run did not end within 5 seconds .*cannot be interrupted/),
}
const FEEDS = `{ input_ids: { type: 'int64', data: new BigInt64Array(60).fill(5n), dims: [1, 60] } }`

describe('a run that does not end', () => {
  it('lets dispose and all calls under way fail by name, and the session is of no use from then on', async () => {
    const result = await told(`
      const session = await lowrank.openSession(folder)
      const hung = errorOf(session.run(${FEEDS}, { adapter: null }))
      await sleep(500)
      const disposed = await errorOf(session.dispose())
      const later = await errorOf(session.run(${FEEDS}, { adapter: null }))
      await tell({ hung: await hung, disposed, later })`)
    expect(result).toEqual({
      hung: HUNG,
      disposed: HUNG,
      later: { name: 'StateError', message: expect.stringContaining('closed') },
    })
  })
})

// They wait most of the time.
describe('the command line', { concurrent: true }, () => {
  it.each(['SIGINT', 'SIGTERM'] as const)(
    'waits for the step after the first %s, and ends at once by the second',
    async (signal) => {
      const out = join(folder, signal)
      const args = ['train', '--model', model, '--data', data, '--out', out, '--rank', '2', '--save-every', '1']
      const { child, done } = start([...args, '--batch-size', '1', '--max-steps', '60', '--threads', '1'])
      while (!existsSync(join(out, 'adapter_config.json')) && child.exitCode === null)
        await new Promise((resolve) => setTimeout(resolve, 20))
      // The next steps take milliseconds, until a step hangs.
      await new Promise((resolve) => setTimeout(resolve, 2000))
      child.kill(signal)
      await new Promise((resolve) => setTimeout(resolve, 2000))
      expect(child.exitCode).toBeNull()
      child.kill(signal)
      const { code, stderr } = await done
      expect(stderr).toMatch(/step/)
      expect(code).toBe(signal === 'SIGINT' ? 130 : 143)
    },
  )

  it('ends at once by the second signal', async () => {
    const prompt = 'one two three '.repeat(40)
    const { child, done } = start(['generate', '--model', model, '--prompt', prompt])
    await new Promise((resolve) => setTimeout(resolve, 4000))
    child.kill('SIGINT')
    await new Promise((resolve) => setTimeout(resolve, 300))
    child.kill('SIGINT')
    const { code } = await done
    expect(code).toBe(130)
  })
})
