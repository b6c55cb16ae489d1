// Asks the old models while they answer. Every request is in the ledger before it is sent.

import { createHash, randomUUID } from 'node:crypto'
import { StateError, UnsupportedError } from '../../../core/base/errors.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { ask, inPool, Refusal } from '../client.js'
import { BATCH_SHARE, costOf, PRICES, type Price, type Prices, priceOf, usageIn, worstCase } from '../prices.js'
import { foreignPart, inOrder, type Message, type Prompt, type Request } from '../prompts.js'
import type { Connection, Environment, Item, Provider } from '../provider.js'
import { Folder } from './folder.js'
import { readJobs } from './jobs.js'
import { Ledger } from './ledger.js'

export interface RecordOptions {
  /** The folder of an export. */
  readonly dir: string
  readonly provider: Provider
  /** Dollars for this folder, over all runs. Nothing is sent without it. */
  readonly budget: number | undefined
  /** Default: the table in this package. */
  readonly prices?: Prices | undefined
  /** The most tokens of an answer. Default 512. */
  readonly maxTokens?: number | undefined
  /** Uses the Batch API, at half the price; answers come within a day. */
  readonly batch?: boolean | undefined
  /** Seconds between two looks at a batch. Default 30. */
  readonly pollSeconds?: number | undefined
  /** The name that the provider has for a model, for providers with deployments. */
  readonly names?: Readonly<Record<string, string>> | undefined
  readonly environment?: Environment | undefined
  readonly signal?: AbortSignal | undefined
  readonly on?: { progress?(event: { done: number; total: number; spent: number }): void } | undefined
}

export interface RecordReport {
  readonly answers: number
  /** Dollars that this folder has spent or reserved. */
  readonly spent: number
  /** What was not asked or answered: the reason, with the number of prompts. */
  readonly notes: Readonly<Record<string, number>>
  readonly gone: Readonly<Record<string, string>>
}

/** An answer of an old model, as recorded.jsonl has it. */
export interface Recorded {
  readonly key: string
  readonly model: string
  readonly origin: Prompt['origin']
  readonly where: string
  /** Who wrote the answer. Training refuses rows with a source until the provider's terms are read. */
  readonly source: { readonly provider: string; readonly model: string }
  readonly answer: Message
  /** `length`: the limit cut the answer, which then counts as unfinished and never as wrong. */
  readonly finish: string
  readonly cost: number
  /** Milliseconds; undefined for batches. */
  readonly ms?: number | undefined
  readonly logprobs?: unknown
}

export const RECORDED = 'recorded.jsonl'

/** Fields of stored requests that are sent again. Others could cost more than their tokens. */
const SENT = ['tools', 'tool_choice', 'parallel_tool_calls', 'response_format', 'functions', 'stop', 'top_p']
const TRIES = 3
const MOST_LOST = 3
/** A model of reasoning takes no temperature. */
const REASONS = /^(ft:)?(o\d|gpt-5)/

/** The same prompt to the same model has the same key. */
export function keyOf(model: string, request: Request): string {
  return createHash('sha256')
    .update(JSON.stringify([model, inOrder(sentOf(request))]))
    .digest('hex')
    .slice(0, 32)
}

export function sentOf(request: Request): Request {
  const kept = SENT.flatMap((name) => (request[name] === undefined ? [] : [[name, request[name]] as const]))
  return { messages: request.messages, ...Object.fromEntries(kept) }
}

export async function recordAnswers(options: RecordOptions): Promise<RecordReport> {
  const { dir, provider, environment = process.env, prices = PRICES } = options
  const connection = provider.connect(environment)
  await (await Folder.open(dir)).close()
  const folder = await Folder.take(dir, provider.name)
  try {
    const ledger = await Ledger.open(folder, options.budget)
    const recorder = new Recorder(folder, ledger, connection, options)
    const jobs = await readJobs(folder, provider, await folder.lists())
    await recorder.begin()
    for (const origin of ['heldOut', 'traffic', 'training'] as const) {
      for (const { job, ...prompts } of jobs) {
        const price = priceOrNote(prices, job.base, recorder, prompts[origin].length)
        if (price !== undefined) await recorder.ask(job.model, prompts[origin], price)
      }
    }
    await recorder.end()
    return {
      answers: recorder.answers,
      spent: ledger.spent,
      notes: Object.fromEntries(recorder.notes),
      gone: folder.manifest.gone,
    }
  } finally {
    await folder.close()
  }
}

function priceOrNote(prices: Prices, base: string, recorder: Recorder, count: number): Price | undefined {
  try {
    return priceOf(prices, base)
  } catch (error) {
    if (!(error instanceof UnsupportedError)) throw error
    recorder.note(error.message, count)
    return undefined
  }
}

interface Sent {
  readonly key: string
  readonly prompt: Prompt
}

type Body = Request & { readonly max_completion_tokens: number }

class Recorder {
  answers = 0
  readonly notes = new Map<string, number>()
  readonly #known = new Set<string>()
  #isSpent = false
  #done = 0
  #total = 0

  constructor(
    private readonly folder: Folder,
    private readonly ledger: Ledger,
    private readonly connection: Connection,
    private readonly options: RecordOptions,
  ) {}

  note(what: string, count = 1): void {
    if (count > 0) this.notes.set(what, (this.notes.get(what) ?? 0) + count)
  }

  async begin(): Promise<void> {
    for (const { key } of (await this.folder.lines(RECORDED)) as unknown as Recorded[]) this.#known.add(key)
    await this.#collect()
  }

  async ask(model: string, prompts: readonly Prompt[], price: Price): Promise<void> {
    const isGone = () => this.folder.manifest.gone[model] !== undefined
    const left = prompts.flatMap((prompt): Sent[] => {
      const key = keyOf(model, prompt.request)
      if (this.#known.has(key) || isGone()) return []
      this.#known.add(key)
      const foreign = foreignPart(prompt.request)
      if (foreign !== undefined) this.note(`not sent: ${foreign}, whose cost its bytes do not tell`)
      return foreign === undefined ? [{ key, prompt }] : []
    })
    this.#total += left.length
    if (this.options.batch) return this.#sendBatch(model, left, price)
    let lost = 0
    const send = async (sent: Sent) => {
      if (this.#isSpent || isGone() || lost >= MOST_LOST)
        return this.note(isGone() ? 'the model is gone' : this.#isSpent ? 'the budget is spent' : 'no answers came', 1)
      lost = (await this.#send(model, sent, price)) ? 0 : lost + 1
      this.options.on?.progress?.({ done: ++this.#done, total: this.#total, spent: this.ledger.spent })
    }
    // The first request finds out whether the model is there, and whether it gives log-probabilities.
    const [first, ...others] = left
    if (first !== undefined) await send(first)
    await inPool(others, send)
  }

  #body(model: string, { request }: Prompt): Body {
    const name = this.options.names?.[model] ?? model
    const hasLogprobs = this.folder.manifest.logprobs[model] ?? this.options.batch !== true
    return {
      ...{ ...sentOf(request), model: name, max_completion_tokens: this.options.maxTokens ?? 512, store: false },
      // A project may have a dearer tier as its default.
      service_tier: 'default',
      ...(!REASONS.test(model) && { temperature: 0, ...(hasLogprobs && { logprobs: true, top_logprobs: 5 }) }),
    }
  }

  /** Returns false if no answer came. */
  async #send(model: string, { key, prompt }: Sent, price: Price): Promise<boolean> {
    const body = this.#body(model, prompt)
    let id = ''
    const beforeTry = async () => {
      id = `${key}-${randomUUID()}`
      if (await this.ledger.reserve(id, worstCase(body, price))) return
      this.#isSpent = true
      throw new StateError({ where: 'budget', what: 'the budget is spent' })
    }
    const startedAt = performance.now()
    const { signal } = this.options
    const request = { method: 'POST', body: JSON.stringify(body), signal, tries: TRIES, beforeTry } as const
    try {
      const answer = await ask(
        this.connection,
        '/chat/completions',
        async (response) => (await response.json()) as Item,
        request,
      )
      const cost = costIn(answer, price)
      if (cost !== undefined) await this.ledger.settle(id, cost)
      const ms = performance.now() - startedAt
      await this.#keep(model, { key, prompt, cost: cost ?? worstCase(body, price), ms }, answer)
      if (body.logprobs) await this.#setLogprobs(model, true)
      return true
    } catch (error) {
      if (error instanceof StateError) {
        this.note('the budget is spent')
        return true
      }
      if (!(error instanceof Refusal)) throw error
      return this.#refused(model, { key, prompt }, id, error, price, body.logprobs === true)
    }
  }

  async #refused(
    model: string,
    sent: Sent,
    id: string,
    error: Refusal,
    price: Price,
    hasLogprobs: boolean,
  ): Promise<boolean> {
    const isFinal = error.status >= 400 && error.status < 500 && ![408, 409, 429].includes(error.status)
    // What a provider refuses to answer it does not bill; anything else may have been billed.
    if (isFinal) await this.ledger.settle(id, 0)
    if (error.status === 410 || (error.status === 404 && /model|deployment/i.test(`${error.reason} ${error.got}`))) {
      await this.folder.save({ gone: { ...this.folder.manifest.gone, [model]: new Date().toISOString().slice(0, 10) } })
      this.note('the model is gone')
      return true
    }
    // It may be the log-probabilities that it refuses.
    if (error.status === 400 && hasLogprobs && this.folder.manifest.logprobs[model] === undefined) {
      await this.#setLogprobs(model, false)
      return this.#send(model, sent, price)
    }
    this.note(isFinal ? `refused: ${error.got}` : `no answer: ${error.got}`)
    return isFinal
  }

  async #setLogprobs(model: string, hasThem: boolean): Promise<void> {
    const { logprobs } = this.folder.manifest
    if (logprobs[model] === undefined) await this.folder.save({ logprobs: { ...logprobs, [model]: hasThem } })
  }

  async #keep(
    model: string,
    { key, prompt, cost, ms }: { key: string; prompt: Pick<Prompt, 'origin' | 'where'>; cost: number; ms?: number },
    answer: Item,
  ): Promise<void> {
    const [choice] = (Array.isArray(answer.choices) ? answer.choices : []) as Item[]
    if (!isObject(choice?.message)) return this.note('refused: the answer has no message')
    const source = { provider: this.options.provider.name, model }
    const { message, finish_reason: finish, logprobs } = choice
    const line = {
      key,
      model,
      origin: prompt.origin,
      where: prompt.where,
      source,
      answer: message,
      finish: String(finish),
      cost,
      ms,
      logprobs,
    }
    await this.folder.append(RECORDED, line satisfies Omit<Recorded, 'answer'> & { answer: object })
    this.answers++
  }

  /** Sends as many prompts as the budget has, in one batch. */
  async #sendBatch(model: string, left: readonly Sent[], price: Price): Promise<void> {
    let total = 0
    const bodies = left.map(({ key, prompt }) => ({ key, prompt, body: this.#body(model, prompt) }))
    const chosen = bodies.filter(({ body }) => {
      const dollars = BATCH_SHARE * worstCase(body, price)
      if (!this.ledger.fits(total + dollars)) return false
      total += dollars
      return true
    })
    this.note('the budget is spent', left.length - chosen.length)
    if (chosen.length === 0) return
    const id = `batch-${randomUUID()}`
    const lines = chosen.map(({ key, body }) => ({ custom_id: key, method: 'POST', url: '/v1/chat/completions', body }))
    const about = chosen.map(({ key, prompt: { origin, where } }) => ({ key, origin, where }))
    await this.folder.append('batches.jsonl', { id, model, price, prompts: about })
    await this.ledger.reserve(id, total)
    const form = new FormData()
    form.set('purpose', 'batch')
    form.set('file', new Blob(lines.map((line) => `${JSON.stringify(line)}\n`)), 'lowrank.jsonl')
    const { signal } = this.options
    const post = (path: string, body: string | FormData) =>
      ask(this.connection, path, async (answer) => (await answer.json()) as Item, {
        method: 'POST',
        body,
        signal,
        tries: 1,
      })
    try {
      const { id: input_file_id } = await post('/files', form)
      const batch = {
        input_file_id,
        endpoint: '/v1/chat/completions',
        completion_window: '24h',
        metadata: { lowrank: id },
      }
      await post('/batches', JSON.stringify(batch))
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      this.note(`no batch: ${error.got}`, chosen.length)
    }
  }

  /** Waits for batches. A later run goes on with those that have not ended. */
  async end(): Promise<void> {
    while ((await this.#collect()) > 0) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * (this.options.pollSeconds ?? 30)))
      this.options.signal?.throwIfAborted()
    }
  }

  /** Reads the batches that have ended, and returns how many go on. */
  async #collect(): Promise<number> {
    type Batch = {
      id: string
      model: string
      price: Price
      prompts: { key: string; origin: Prompt['origin']; where: string }[]
    }
    const batches = ((await this.folder.lines('batches.jsonl')) as unknown as Batch[]).filter(({ id }) =>
      this.ledger.isOpen(id),
    )
    for (const { prompts } of batches) for (const { key } of prompts) this.#known.add(key)
    let open = 0
    for (const { id, model, price, prompts } of batches) {
      const batch = await this.#find(id)
      if (batch === undefined)
        this.note('in a batch that the provider does not list; its reservation stays', prompts.length)
      else if (!['completed', 'expired', 'failed', 'cancelled'].includes(String(batch.status))) open++
      else await this.#read(batch, { id, model, price, prompts })
    }
    return open
  }

  async #find(id: string): Promise<Item | undefined> {
    for (let after = ''; ; ) {
      const page = await this.#get(`/batches?limit=100${after && `&after=${after}`}`, (answer) => answer.json())
      const { data = [], has_more } = page as { data?: Item[]; has_more?: boolean }
      const found = data.find(({ metadata }) => isObject(metadata) && metadata.lowrank === id)
      if (found !== undefined || !has_more || data.length === 0) return found
      after = String(data.at(-1)!.id)
    }
  }

  #get<T>(path: string, read: (answer: Response) => Promise<T>): Promise<T> {
    return ask(this.connection, path, read, { signal: this.options.signal })
  }

  async #read(
    batch: Item,
    {
      id,
      model,
      price,
      prompts,
    }: { id: string; model: string; price: Price; prompts: { key: string; origin: Prompt['origin']; where: string }[] },
  ): Promise<void> {
    const file = batch.output_file_id
    const text =
      typeof file === 'string'
        ? await this.#get(`/files/${encodeURIComponent(file)}/content`, (answer) => answer.text())
        : ''
    let total = 0
    for (const line of text.split('\n')) {
      const { custom_id: key, response } = (jsonIn(line) ?? {}) as {
        custom_id?: string
        response?: { status_code?: number; body?: Item }
      }
      const prompt = prompts.find((known) => known.key === key)
      if (prompt === undefined || response?.body === undefined) continue
      const cost = BATCH_SHARE * (costIn(response.body, price) ?? 0)
      total += cost
      if (response.status_code === 200) await this.#keep(model, { key: prompt.key, prompt, cost }, response.body)
    }
    await this.ledger.settle(id, total)
  }
}

function costIn({ usage }: Item, price: Price): number | undefined {
  const found = usageIn(usage)
  return found && costOf(found, price)
}
