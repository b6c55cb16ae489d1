// JSON Schemas of OpenAI's answers, made from the types of their client for Node.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

/** Method and path → the type of its answer. `List` is a page of entries. */
const ANSWERS: Readonly<Record<string, string>> = {
  'GET /files': 'List<FileObject>',
  'POST /files': 'FileObject',
  'GET /files/*': 'FileObject',
  'DELETE /files/*': 'FileDeleted',
  'GET /fine_tuning/jobs': 'List<FineTuningJob>',
  'POST /fine_tuning/jobs': 'FineTuningJob',
  'GET /fine_tuning/jobs/*': 'FineTuningJob',
  'POST /fine_tuning/jobs/*/cancel': 'FineTuningJob',
  'POST /fine_tuning/jobs/*/pause': 'FineTuningJob',
  'POST /fine_tuning/jobs/*/resume': 'FineTuningJob',
  'GET /fine_tuning/jobs/*/events': 'List<FineTuningJobEvent>',
  'GET /fine_tuning/jobs/*/checkpoints': 'List<FineTuningJobCheckpoint>',
  'GET /models': '{ object: "list"; data: Model[] }',
  'GET /models/*': 'Model',
  'DELETE /models/*': 'ModelDeleted',
  'POST /completions': 'Completion',
  'POST /chat/completions': 'ChatCompletion',
  'GET /chat/completions': 'List<ChatCompletion>',
  'GET /chat/completions/*': 'ChatCompletion',
  'POST /chat/completions/*': 'ChatCompletion',
  'DELETE /chat/completions/*': 'ChatCompletionDeleted',
  'GET /chat/completions/*/messages': 'List<ChatCompletionStoreMessage>',
}

const SOURCE = `
import type { ChatCompletion, ChatCompletionDeleted, ChatCompletionStoreMessage } from 'openai/resources/chat/completions'
import type { Completion } from 'openai/resources/completions'
import type { FileDeleted, FileObject } from 'openai/resources/files'
import type { FineTuningJob, FineTuningJobEvent } from 'openai/resources/fine-tuning/jobs/jobs'
import type { FineTuningJobCheckpoint } from 'openai/resources/fine-tuning/jobs/checkpoints'
import type { Model, ModelDeleted } from 'openai/resources/models'
interface List<Entry> { object: 'list'; data: Entry[]; first_id: string | null; last_id: string | null; has_more: boolean }
export interface Answers { ${Object.entries(ANSWERS)
  .map(([route, type]) => `${JSON.stringify(route)}: ${type}`)
  .join('\n')} }
`

interface Checks {
  /** A `fetch` that checks each answer. */
  readonly fetch: typeof fetch
  /** What does not fit, and where. */
  readonly problems: string[]
  readonly checked: ReadonlySet<string>
}

export const ROUTES = Object.keys(ANSWERS)

/** @param name the client's package, such as `openai` */
export function checksOf(name: string): Checks {
  const require = createRequire(import.meta.url)
  const { createGenerator } = require('ts-json-schema-generator')
  const { Ajv } = require('ajv')
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-schemas-'))
  const types = dirname(require.resolve(name))
  const paths = { 'openai/*': [`${types}/*`] }
  const [path, tsconfig] = ['answers.ts', 'tsconfig.json'].map((file) => join(folder, file))
  writeFileSync(path, SOURCE)
  const compilerOptions = { paths, moduleResolution: 'bundler', module: 'esnext', lib: ['es2022', 'dom'], types: [] }
  writeFileSync(tsconfig, JSON.stringify({ compilerOptions, files: [path] }))
  const options = { path, tsconfig, type: 'Answers', skipTypeCheck: true, additionalProperties: true }
  const schema = createGenerator(options).createSchema('Answers')
  // The type knows answers alone, but OpenAI's reference shows a message of a user.
  schema.definitions.ChatCompletionStoreMessage.properties.role = { type: 'string' }
  rmSync(folder, { recursive: true })
  const ajv = new Ajv({ strict: false, allErrors: true })
  ajv.addSchema(schema, 'answers')
  const [problems, checked] = [[] as string[], new Set<string>()]
  return {
    problems,
    checked,
    async fetch(input, init) {
      const answer = await fetch(input, init)
      const method = init?.method ?? 'GET'
      const { pathname } = new URL(String(input))
      const route = `${method.toUpperCase()} ${pathname.replace(/^\/v1/, '').replace(/(?<=\/(files|uploads|jobs|models|chat\/completions)\/)[^/]+/, '*')}`
      if (!answer.ok || !answer.headers.get('content-type')?.startsWith('application/json')) return answer
      checked.add(route)
      const pointer = route.replaceAll('/', '~1').replaceAll(' ', '%20')
      const check = ajv.getSchema(`answers#/definitions/Answers/properties/${pointer}`)
      if (check === undefined) problems.push(`${route}: no schema`)
      else if (!check(await answer.clone().json())) problems.push(`${route}: ${ajv.errorsText(check.errors)}`)
      return answer
    },
  }
}
