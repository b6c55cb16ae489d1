// OpenAI's own client fine-tunes here, and what a job writes down repeats it.

import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { createHandler, type Handler, listen, trainingIn } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { fineTune } from './fine-tuning.js'

const { OpenAI, toFile } = (() => {
  try {
    return createRequire(import.meta.url)('openai')
  } catch {
    return {}
  }
})()
const folder = mkdtempSync(join(tmpdir(), 'lowrank-jobs-'))
const row = (i: number) => ({ prompt: `The boat number ${i} `, completion: `sails to the island of ${i * 7}` })
let handler: Handler
let listening: Awaited<ReturnType<typeof listen>>

beforeAll(async () => {
  handler = await createHandler({
    ...{ model: 'models/union-3m', training: trainingIn(folder), hosts: ['127.0.0.1'] },
    chatTemplate: '{% for m in messages %}{{ m.content }}{% endfor %}',
    apiKeys: [{ key: 'root', isAdmin: true }, 'key'],
  })
  listening = await listen(handler, { port: 0 })
})
afterAll(async () => {
  await listening.close()
  await handler.close()
  rmSync(folder, { recursive: true, force: true })
})

const python = process.env.CLIENTS_PYTHON ?? 'python3'
const hasPython = spawnSync(python, ['-c', 'import openai']).status === 0

it.skipIf(!hasPython)('gives Python’s client answers that its types accept strictly', async () => {
  const args = ['tests/serve/jobs/strict.py', `${listening.url}/v1`, 'key', handler.base]
  const { stdout } = await promisify(execFile)(python, args)
  expect(Number(stdout)).toBeGreaterThan(50)
})

describe.skipIf(OpenAI === undefined)('openai', () => {
  it('uploads, trains, watches, uses, cancels, goes on and deletes; the command that is told gives the same bytes', async () => {
    const client = new OpenAI({ baseURL: `${listening.url}/v1`, apiKey: 'key', maxRetries: 0 })
    const { resumed } = await fineTune(client, handler.base, row, toFile)
    const root = new OpenAI({ baseURL: `${listening.url}/v1`, apiKey: 'root', maxRetries: 0 })
    const { command } = (await root.fineTuning.jobs.retrieve(resumed.id)).lowrank
    expect(command).toMatch(/^lowrank train --config .* --out DIR$/)
    const out = join(folder, 'again')
    const args = command.replace('DIR', out).split(' ').slice(1)
    execFileSync(process.execPath, ['dist/cli/main.js', ...args], { stdio: 'pipe' })
    const bytes = (place: string) => readFileSync(join(place, 'adapter_model.safetensors'))
    expect(bytes(out).equals(bytes(join(folder, 'jobs', resumed.id, 'run')))).toBe(true)
  })
})
