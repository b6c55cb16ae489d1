// The whole way as an owner goes it, from the export to a client whose address alone changes.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { lowrankHere } from '../cli/in-process.js'
import { MODEL, start } from '../cli/lowrank.js'
import { OLD_MODEL, ProviderServer, questionOf } from './provider-server.js'

let server: ProviderServer
let scratch: string

beforeEach(async () => {
  server = await ProviderServer.open()
  scratch = mkdtempSync(join(tmpdir(), 'lowrank-way-'))
  for (const [name, value] of Object.entries(server.environment)) vi.stubEnv(name, value)
})
afterEach(async () => {
  vi.unstubAllEnvs()
  await server.close()
  rmSync(scratch, { recursive: true, force: true })
})

interface Completion {
  readonly model: string
  readonly choices: readonly { readonly message: { readonly role: string; readonly content: string } }[]
}

/** A program of the owner: OpenAI's client if it is installed. */
async function program(baseURL: string): Promise<Completion> {
  const body = { model: OLD_MODEL, messages: [{ role: 'user', content: questionOf(3) }], max_tokens: 8, temperature: 0 }
  const require = createRequire(import.meta.url)
  try {
    require.resolve('openai')
  } catch {
    const headers = { 'content-type': 'application/json', authorization: 'Bearer sk-secret' }
    const answer = await fetch(`${baseURL}/chat/completions`, { method: 'POST', headers, body: JSON.stringify(body) })
    return (await answer.json()) as Completion
  }
  const { OpenAI } = require('openai')
  return new OpenAI({ baseURL, apiKey: 'sk-secret', maxRetries: 0 }).chat.completions.create(body)
}

it('goes from the export to a client whose address alone has changed', async () => {
  const home = join(scratch, 'home')
  const template = ['--chat-template', 'models/data/chat.jinja']
  const run = async (...args: string[]) => {
    const { code, stderr } = await lowrankHere('openai', ...args)
    expect([code, stderr]).toEqual([0, expect.any(String)])
  }
  await run('export', home)
  await run('record', home, '--budget', '20', '--max-tokens', '50')
  await run('move', home, '--base', MODEL, ...template, '--max-tokens', '12')
  const [job] = JSON.parse(readFileSync(join(home, 'comparison.json'), 'utf8'))
  expect(job).toMatchObject({ job: 'ftjob-1', model: OLD_MODEL, base: MODEL })
  expect(existsSync(join(home, job.adapter, 'adapter_model.safetensors'))).toBe(true)
  expect(readFileSync(join(home, job.adapter, 'README.md'), 'utf8')).toMatch(/your customers’ words/)
  const compared = job.comparisons['held-out prompts: exact match']
  expect(compared.prompts + compared.unfinished).toBe(3)
  expect(compared.verdict).toMatch(/^(No verdict|There are no prompts)/)
  expect(readFileSync(join(home, 'comparison.html'), 'utf8')).toContain('Is it as good?')
  await run('check', home, ...template)
  const before = await program(server.url)

  const { child, done } = start(['serve', '--moved', home, '--upstream', server.url, ...template, '--port', '0'])
  try {
    let said = ''
    child.stderr!.on('data', (piece) => {
      said += piece
    })
    await expect.poll(() => said, { timeout: 60_000 }).toMatch(/http:\/\/127\.0\.0\.1:\d+/)
    const [url] = /http:\/\/127\.0\.0\.1:\d+/.exec(said)!
    const { data } = (await (await fetch(`${url}/v1/aliases`)).json()) as { data: { name: string }[] }
    expect(data.map(({ name }) => name)).toEqual([OLD_MODEL])
    expect((await program(`${url}/v1`)).choices[0].message).toMatchObject(before.choices[0].message)
    server.gone.add(OLD_MODEL)
    const { model, choices } = await program(`${url}/v1`)
    expect([model, choices[0].message.role]).toEqual([OLD_MODEL, 'assistant'])
    const asked = server.asked.length
    await program(`${url}/v1`)
    expect(server.asked).toHaveLength(asked)
  } finally {
    child.kill('SIGTERM')
  }
  expect((await done).code).toBe(0)
}, 120_000)
