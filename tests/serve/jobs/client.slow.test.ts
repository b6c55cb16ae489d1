// OpenAI's own clients fine-tune here, and each answer has the form of their types.

import { execFile, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { createHandler, type Handler, listen, trainingIn } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { fineTune, useTheRest } from './fine-tuning.js'
import { checksOf, ROUTES } from './schemas.js'

const require = createRequire(import.meta.url)
const has = (name: string) => {
  try {
    return require.resolve(name) !== ''
  } catch {
    return false
  }
}
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

describe.each(['openai', 'openai-7'])('%s', (name) => {
  const isHere = has(name) && has('ts-json-schema-generator') && has('ajv')
  it.skipIf(!isHere)(
    'uploads, trains, watches, uses, cancels, goes on and deletes, by answers of its types',
    async () => {
      const { OpenAI, toFile } = require(name)
      const { fetch, problems, checked } = checksOf(name)
      const client = new OpenAI({ baseURL: `${listening.url}/v1`, apiKey: 'key', maxRetries: 0, fetch })
      await fineTune(client, handler.base, row, toFile)
      await useTheRest(client, handler.base, toFile)
      expect(problems).toEqual([])
      expect([...checked].sort()).toEqual([...ROUTES].sort())
    },
  )
})
