// A server that answers as OpenAI's API reference says, with the data of a small owner and faults on request.

import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export const OLD_MODEL = 'ft:gpt-4.1-mini-2025-04-14:acme::abc'

export interface Asked {
  readonly method: string
  readonly path: string
  readonly headers: IncomingMessage['headers']
  readonly body: string
}

export type Answer = { status?: number; headers?: Record<string, string>; body?: unknown; cut?: number } | 'hang up'

const jsonl = (rows: readonly object[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join('')

export const chat = (question: string, answer: string) => ({
  messages: [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ],
})

export const questionOf = (i: number) => `Which number is ${i}?`
export const answerOf = (i: number) => `It is ${i % 7}.`

/** A job as the reference shows it. */
export function jobOf(id: string, changes: object = {}) {
  const hyperparameters = { n_epochs: 2, batch_size: 1, learning_rate_multiplier: 2 }
  return {
    ...{ id, object: 'fine_tuning.job', created_at: 1_750_000_000, finished_at: 1_750_003_600, estimated_finish: null },
    ...{
      model: 'gpt-4.1-mini-2025-04-14',
      fine_tuned_model: OLD_MODEL,
      organization_id: 'org-acme',
      status: 'succeeded',
    },
    ...{
      training_file: 'file-train',
      validation_file: 'file-valid',
      result_files: ['file-result'],
      trained_tokens: 900,
    },
    ...{ error: null, seed: 7, integrations: [], metadata: null, user_provided_suffix: null, hyperparameters },
    method: { type: 'supervised', supervised: { hyperparameters } },
    ...changes,
  }
}

const file = (id: string, filename: string, purpose: string, content: string) => ({
  ...{
    id,
    object: 'file',
    bytes: Buffer.byteLength(content),
    created_at: 1_750_000_000,
    filename,
    purpose,
  },
  status: 'processed',
  content,
})

const completion = (i: number) => ({
  ...{
    id: `chatcmpl-${i}`,
    object: 'chat.completion',
    created: 1_751_000_000 + i,
    model: OLD_MODEL,
    request_id: `req_${i}`,
  },
  ...{
    temperature: 1,
    top_p: 1,
    presence_penalty: 0,
    frequency_penalty: 0,
    seed: 1,
    service_tier: 'default',
    tools: null,
  },
  ...{
    tool_choice: null,
    response_format: null,
    metadata: { rating: 'good' },
    input_user: null,
    system_fingerprint: 'fp_1',
  },
  usage: { prompt_tokens: 9, completion_tokens: 4, total_tokens: 13 },
  choices: [
    {
      ...{ index: 0, finish_reason: 'stop', logprobs: null },
      message: { role: 'assistant', content: answerOf(i), refusal: null, annotations: [] },
    },
  ],
})

export class ProviderServer {
  readonly asked: Asked[] = []
  /** What was answered with status 200 and JSON. */
  readonly served: { readonly route: string; readonly body: unknown }[] = []
  /** Answers of another provider, in the place of OpenAI's. */
  own: ((method: string, path: string, query: URLSearchParams) => Answer | undefined) | undefined
  url = ''
  /** Answers that come before the usual ones, by path; each is used once. */
  readonly faults = new Map<string, Answer[]>()
  /** Routes that answer 404 to everyone. */
  readonly gone = new Set<string>()
  jobs: object[] = [jobOf('ftjob-1')]
  files = new Map(
    [
      file(
        'file-train',
        'train.jsonl',
        'fine-tune',
        jsonl(Array.from({ length: 20 }, (_, i) => chat(questionOf(i), answerOf(i)))),
      ),
      file(
        'file-valid',
        'valid.jsonl',
        'fine-tune',
        jsonl([100, 101, 102].map((i) => chat(questionOf(i), answerOf(i)))),
      ),
      file('file-result', 'result.csv', 'fine-tune-results', 'step,train_loss\n1,2.5\n'),
    ].map((entry) => [entry.id, entry]),
  )
  completions = Array.from({ length: 7 }, (_, i) => completion(200 + i))
  /** What the old model answers. */
  answer: (body: { messages: { content: string }[] }) => object = (body) => {
    const [, number] = /(\d+)/.exec(body.messages.at(-1)!.content) ?? []
    return {
      message: { role: 'assistant', content: answerOf(Number(number)), refusal: null },
      finish_reason: 'stop',
      logprobs: null,
    }
  }
  batches: Record<string, unknown>[] = []
  /** True if batches end at once. */
  endsBatches = true

  readonly #server = createServer((request, response) => void this.#handle(request, response))

  static async open(): Promise<ProviderServer> {
    const server = new ProviderServer()
    server.#server.listen(0, '127.0.0.1')
    await once(server.#server, 'listening')
    server.url = `http://127.0.0.1:${(server.#server.address() as AddressInfo).port}/v1`
    return server
  }

  get environment() {
    return { OPENAI_API_KEY: 'sk-secret', OPENAI_BASE_URL: this.url }
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const body = Buffer.concat(chunks).toString()
    const url = new URL(request.url!, this.url)
    const path = url.pathname.replace(/^.*\/v1/, '')
    this.asked.push({ method: request.method!, path: path + url.search, headers: request.headers, body })
    const fault = this.faults.get(path)?.shift()
    const ours = this.own?.(request.method!, path, url.searchParams)
    const answer = fault ?? ours ?? this.#answer(request.method!, path, url.searchParams, body)
    if (answer === 'hang up') return void response.destroy()
    const { status = 200, headers = {}, body: sent = {}, cut } = answer
    if (fault === undefined && status === 200 && !path.endsWith('/content') && !(sent instanceof Uint8Array))
      this.served.push({ route: `${request.method} ${path}`, body: JSON.parse(JSON.stringify(sent)) })
    const bytes = typeof sent === 'string' || sent instanceof Uint8Array ? sent : JSON.stringify(sent)
    const seen = { 'openai-organization': 'org-acme', 'openai-project': 'proj_shop', 'x-request-id': 'req_test' }
    response.writeHead(status, { 'content-type': 'application/json', ...seen, ...headers })
    if (cut === undefined) return void response.end(bytes)
    response.write(bytes.slice(0, cut))
    setTimeout(() => response.destroy(), 10)
  }

  #answer(method: string, path: string, query: URLSearchParams, body: string): Answer {
    const missing = (code: string) => ({
      status: 404,
      body: { error: { message: `${path} does not exist`, type: 'invalid_request_error', param: null, code } },
    })
    if ([...this.gone].some((route) => path.startsWith(route))) return missing('not_found')
    const [, first, second, id, rest] = path.split('/')
    const page = (all: readonly object[], most = 2) => {
      const from = query.has('after')
        ? all.findIndex((item) => (item as { id: string }).id === query.get('after')) + 1
        : 0
      const data = all.slice(from, from + Math.min(most, Number(query.get('limit') ?? 20)))
      const [first, last] = [data[0], data.at(-1)] as { id: string }[]
      const ends = first === undefined ? {} : { first_id: first.id, last_id: last.id }
      return { body: { object: 'list', data, ...ends, has_more: from + data.length < all.length } }
    }
    if (path === '/fine_tuning/jobs') return page(this.jobs)
    if (first === 'fine_tuning' && rest === 'events') {
      const event = (n: number) => ({
        ...{ id: `ftevent-${n}`, object: 'fine_tuning.job.event', created_at: 1_750_000_000 + n, level: 'info' },
        ...{ message: `Step ${n}`, type: 'metrics', data: { step: n } },
      })
      return page([1, 2, 3].map(event))
    }
    if (first === 'fine_tuning' && rest === 'checkpoints') {
      const metrics = { step: 20, train_loss: 0.5, valid_loss: 0.6 }
      return page([
        {
          ...{
            id: 'ftckpt-1',
            object: 'fine_tuning.job.checkpoint',
            created_at: 1_750_000_000,
            fine_tuning_job_id: id,
          },
          ...{ fine_tuned_model_checkpoint: `${OLD_MODEL}:ckpt-step-20`, step_number: 20, metrics },
        },
      ])
    }
    if (path === '/files' && method === 'POST') return this.#upload(body)
    if (path === '/files') return page([...this.files.values()].map(({ content: _, ...shown }) => shown))
    if (first === 'files') {
      const found = this.files.get(second)
      if (found === undefined) return missing('file_not_found')
      return { body: id === 'content' ? found.content : { ...found, content: undefined } }
    }
    if (path === '/batches' && method === 'POST') return this.#batch(JSON.parse(body))
    if (path === '/batches') return page(this.batches)
    if (first === 'batches') return { body: this.batches.find((batch) => batch.id === second) }
    if (path === '/chat/completions' && method === 'POST') return this.#complete(JSON.parse(body))
    if (path === '/chat/completions') return page(this.completions, 3)
    if (rest === 'messages') {
      const number = Number(id.replace('chatcmpl-', ''))
      return page([{ id: `${id}-0`, role: 'user', content: questionOf(number), content_parts: null, refusal: null }])
    }
    if (path === '/models') {
      const data = [{ id: OLD_MODEL, object: 'model', created: 1, owned_by: 'acme', shutdown_date: '2027-01-14' }]
      return { body: { object: 'list', data } }
    }
    const error = { code: '', message: '' }
    const of = { created_at: 1_750_000_000, eval_id: 'eval_1' }
    const source = { type: 'jsonl', source: { type: 'file_id', id: 'file-valid' } }
    if (path === '/evals') {
      const asked = { data_source_config: { type: 'custom', schema: {} }, testing_criteria: [], metadata: null }
      return page([{ id: 'eval_1', object: 'eval', name: 'numbers', created_at: 1_750_000_000, ...asked }])
    }
    if (path === '/evals/eval_1/runs') {
      const counts = { total: 3, errored: 0, failed: 0, passed: 3 }
      const about = { ...of, model: OLD_MODEL, name: 'first', report_url: '', data_source: source, metadata: null }
      const results = { result_counts: counts, per_model_usage: [], per_testing_criteria_results: [], error }
      return page([{ id: 'evalrun_1', object: 'eval.run', status: 'completed', ...about, ...results }])
    }
    if (path === '/evals/eval_1/runs/evalrun_1/output_items') {
      const usage = { total_tokens: 1, completion_tokens: 1, prompt_tokens: 0, cached_tokens: 0 }
      const settings = { temperature: 0, max_completion_tokens: 9, top_p: 1, seed: 1 }
      const sample = { input: [], output: [], finish_reason: 'stop', model: OLD_MODEL, usage, error, ...settings }
      const about = { ...of, run_id: 'evalrun_1', datasource_item: {}, results: [], sample }
      const item = (n: number) => ({ id: `out_${n}`, datasource_item_id: n, ...about, status: 'pass' })
      return page([1, 2, 3].map((n) => ({ object: 'eval.run.output_item', ...item(n) })))
    }
    return missing('not_found')
  }

  #complete(body: { messages: { content: string }[]; model: string }): Answer {
    if (this.gone.has(body.model)) {
      const error = {
        message: `The model ${body.model} does not exist`,
        type: 'invalid_request_error',
        param: null,
        code: 'model_not_found',
      }
      return { status: 404, body: { error } }
    }
    const usage = { prompt_tokens: 12, completion_tokens: 5, total_tokens: 17 }
    const choice = { index: 0, ...this.answer(body) }
    return {
      body: { id: 'chatcmpl-new', object: 'chat.completion', created: 1, model: body.model, choices: [choice], usage },
    }
  }

  #upload(body: string): Answer {
    const content = /name="file".*?\r\n\r\n(.*?)\r\n--/s.exec(body)?.[1] ?? ''
    const id = `file-batch${this.files.size}`
    const entry = file(id, 'batch.jsonl', 'batch', content)
    this.files.set(id, entry)
    return { body: { ...entry, content: undefined } }
  }

  #batch({ input_file_id, metadata }: { input_file_id: string; metadata: object }): Answer {
    const lines = this.files
      .get(input_file_id)!
      .content.trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    const results = lines.map(({ custom_id, body }, i) => ({
      ...{ id: `batch_req_${i}`, custom_id, error: null },
      response: { status_code: 200, request_id: `req_${i}`, body: (this.#complete(body) as { body: object }).body },
    }))
    const output = file(`file-out${this.files.size}`, 'out.jsonl', 'batch_output', jsonl(results))
    this.files.set(output.id, output)
    const ended = this.endsBatches
      ? { status: 'completed', output_file_id: output.id }
      : { status: 'in_progress', made: output.id }
    const batch = {
      id: `batch_${this.batches.length}`,
      object: 'batch',
      completion_window: '24h',
      created_at: 1_750_000_000,
      endpoint: '/v1/chat/completions',
      input_file_id,
      metadata,
      ...ended,
    }
    this.batches.push(batch)
    return { body: batch }
  }
}
