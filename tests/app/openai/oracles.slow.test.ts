// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// The server of these tests answers as the providers say: each answer fits the schema of their OpenAPI files, and
// OpenAI's own client reads the same items from its pages.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { azure, exportAll, openai, type Provider, recordAnswers, together } from '../../../src/app/openai/node/entry.js'
import { ProviderServer } from './provider-server.js'
import { answerOfTogether, environmentOfTogether } from './together-answers.js'

const require = createRequire(import.meta.url)
const has = (name: string) => {
  try {
    return require.resolve(name) !== ''
  } catch {
    return false
  }
}
let server: ProviderServer
let dir: string

beforeEach(async () => {
  server = await ProviderServer.open()
  dir = mkdtempSync(join(tmpdir(), 'lowrank-oracles-'))
})
afterEach(async () => {
  await server.close()
  rmSync(dir, { recursive: true, force: true })
})

/** The schemas of a provider's answers, by method and path. */
function schemasOf(name: string) {
  const { answers, components } = JSON.parse(readFileSync(`tests/golden/providers/${name}.json`, 'utf8'))
  const { default: Ajv } = require('ajv/dist/2020.js')
  const ajv = new Ajv({ strict: false, allErrors: true, validateFormats: false })
  ajv.addSchema({ $id: 'https://provider/', components })
  const inFile = (schema: object) => JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"https://provider/#/'))
  return Object.entries<object>(answers).map(([route, schema]) => {
    const pattern = new RegExp(`^${route.replaceAll('*', '[^/]+')}$`)
    return { route, pattern, check: ajv.compile(inFile(schema)) }
  })
}

function problemsOf(name: string) {
  const schemas = schemasOf(name)
  const seen = new Set<string>()
  const problems = server.served.flatMap(({ route, body }) => {
    const schema = schemas.find(({ pattern }) => pattern.test(route))
    if (schema === undefined) return [`${route} has no schema`]
    seen.add(schema.route)
    if (schema.check(body)) return []
    // The file has only answers as stored messages, and a question in its own example.
    const errors = schema.check.errors.filter(({ instancePath }: any) => !/^\/data\/\d+\/role$/.test(instancePath))
    return errors.slice(0, 3).map((error: any) => `${route}${error.instancePath}: ${error.message}`)
  })
  const unseen = schemas.map(({ route }) => route).filter((route) => !seen.has(route))
  return { problems: [...new Set(problems)], unseen }
}

describe.skipIf(!has('ajv'))('the answers of the test server', () => {
  it.each([openai, azure])('fit OpenAI’s OpenAPI file: $name', async (provider: Provider) => {
    const environment = {
      ...server.environment,
      ...{ AZURE_OPENAI_ENDPOINT: server.url.replace('/v1', '/azure'), AZURE_OPENAI_API_KEY: 'secret' },
    }
    const { missing } = await exportAll({ out: join(dir, 'home'), provider, environment })
    expect(missing).toEqual([])
    const asked = { dir: join(dir, 'home'), environment, budget: 20, pollSeconds: 0.01 }
    const { answers } = await recordAnswers({ ...asked, maxTokens: 50, budget: 0.001 })
    const batched = await recordAnswers({ ...asked, batch: true })
    expect(answers + batched.answers).toBe(30)
    expect(answers).toBeGreaterThan(0)
    // A list with entries.
    await exportAll({ out: join(dir, 'home'), provider, environment })
    expect(problemsOf('openai')).toEqual({ problems: [], unseen: [] })
  })

  it('fit Together’s OpenAPI file', async () => {
    server.own = answerOfTogether
    const { missing } = await exportAll({
      ...{ out: join(dir, 'home'), provider: together, environment: environmentOfTogether(server) },
    })
    expect(missing).toEqual([])
    expect(problemsOf('together')).toEqual({ problems: [], unseen: [] })
  })
})

it.skipIf(!has('openai'))('OpenAI’s client reads the items that an export takes home', async () => {
  const { OpenAI } = require('openai')
  const client = new OpenAI({ baseURL: server.url, apiKey: 'key', maxRetries: 0 })
  await exportAll({ out: join(dir, 'home'), provider: openai, environment: server.environment })
  const idsIn = (place: string) =>
    readFileSync(join(dir, 'home/lists', place), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line).id)
  const idsOf = async (pages: AsyncIterable<{ id: string }>) => {
    const ids = []
    for await (const { id } of pages) ids.push(id)
    return ids
  }
  expect(await idsOf(client.fineTuning.jobs.list())).toEqual(idsIn('jobs.jsonl'))
  expect(await idsOf(client.fineTuning.jobs.listEvents('ftjob-1'))).toEqual(idsIn('events/ftjob-1.jsonl'))
  expect(await idsOf(client.fineTuning.jobs.checkpoints.list('ftjob-1'))).toEqual(idsIn('checkpoints/ftjob-1.jsonl'))
  expect(await idsOf(client.files.list())).toEqual(idsIn('files.jsonl'))
  expect(await idsOf(client.chat.completions.list())).toEqual(idsIn('completions.jsonl'))
  expect(await idsOf(client.chat.completions.messages.list('chatcmpl-203'))).toEqual(
    idsIn('messages/chatcmpl-203.jsonl'),
  )
  expect(await idsOf(client.models.list())).toEqual(idsIn('models.jsonl'))
  expect(await idsOf(client.evals.list())).toEqual(idsIn('evals.jsonl'))
  expect(await idsOf(client.evals.runs.list('eval_1'))).toEqual(idsIn('runs/eval_1.jsonl'))
  const items = client.evals.runs.outputItems.list('evalrun_1', { eval_id: 'eval_1' })
  expect(await idsOf(items)).toEqual(idsIn('output-items/eval_1.evalrun_1.jsonl'))
  const { choices } = await client.chat.completions.create({
    ...{ model: 'ft:gpt-4.1-mini-2025-04-14:acme::abc', messages: [{ role: 'user', content: 'Which number is 9?' }] },
  })
  expect(choices[0].message.content).toBe('It is 2.')
})
