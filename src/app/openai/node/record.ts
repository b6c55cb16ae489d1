// Asks the old models while they answer. Every request is in the ledger before it is sent.

import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { StateError, UnsupportedError } from '../../../core/base/errors.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { BATCH_SHARE, costIn, PRICES, type Price, type Prices, priceOf, worstCase } from '../prices.js'
import { foreignPart, ORIGINS, type Prompt } from '../prompts.js'
import type { Connection, Environment, Item, Job } from '../provider.js'
import { ask, askJson, inPool, Refusal } from './client.js'
import { Folder } from './folder.js'
import { readJobs } from './jobs.js'
import { Ledger } from './ledger.js'
import { keyOf, RECORDED, type Recorded, recordedOf, sentOf } from './recorded.js'

export interface RecordOptions {
  /** The folder of an export. */
  readonly dir: string
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

const TRIES = 3
const MOST_LOST = 3
/** A model of reasoning takes no temperature. */
const REASONS = /^(ft:)?(o\d|gpt-5)/
const ENDED = ['completed', 'expired', 'failed', 'cancelled']

export async function recordAnswers(options: RecordOptions): Promise<RecordReport> {
  const { dir, environment = process.env } = options
  return Folder.use(dir, async (folder) => {
    const connection = folder.provider.connect(environment)
    const ledger = await Ledger.open(folder, options.budget)
    const jobs = await readJobs(folder)
    const prompts = ORIGINS.flatMap((origin) =>
      jobs.flatMap(({ job, prompts }) =>
        prompts[origin].map((prompt) => ({ key: keyOf(job.model, prompt.request), job, prompt })),
      ),
    )
    const recorder = new Recorder(folder, ledger, connection, options, prompts)
    await recorder.run()
    const { answers, notes } = recorder
    return { answers, spent: ledger.spent, notes: Object.fromEntries(notes), gone: folder.manifest.gone }
  })
}

interface Asked {
  readonly key: string
  readonly job: Job
  readonly prompt: Prompt
}

class Recorder {
  answers = 0
  readonly notes = new Map<string, number>()
  readonly #byKey: ReadonlyMap<string, Asked>
  /** Keys of prompts that have an answer, or are in a batch. */
  readonly #known = new Set<string>()
  #isSpent = false
  /** Requests of a model, one after the other, that had no answer. */
  #lost = 0
  #done = 0

  constructor(
    private readonly folder: Folder,
    private readonly ledger: Ledger,
    private readonly connection: Connection,
    private readonly options: RecordOptions,
    prompts: readonly Asked[],
  ) {
    // The same prompt can come from several lists. The first list is the most useful, so its entry is set last.
    this.#byKey = new Map(prompts.toReversed().map((asked) => [asked.key, asked]))
  }

  async run(): Promise<void> {
    for (const { key } of (await this.folder.lines(RECORDED)) as unknown as Recorded[]) this.#known.add(key)
    await this.#collect()
    const left = [...this.#byKey.values()].reverse().filter((asked) => !this.#known.has(asked.key))
    const groups = new Map<string, Asked[]>()
    for (const asked of left.filter((asked) => this.#canSend(asked))) {
      const group = `${asked.prompt.origin} ${asked.job.model}`
      groups.set(group, [...(groups.get(group) ?? []), asked])
    }
    for (const group of [...groups.values()]) {
      if (this.options.batch) await this.#sendBatch(group)
      else await this.#sendAll(group, left.length)
    }
    while ((await this.#collect()) > 0) {
      await sleep(1000 * (this.options.pollSeconds ?? 30), undefined, { signal: this.options.signal })
    }
  }

  #note(what: string, count = 1): void {
    if (count > 0) this.notes.set(what, (this.notes.get(what) ?? 0) + count)
  }

  /** The price of a model, which `#canSend` has looked up before. */
  #priceOf({ base }: Job): Price {
    return priceOf(this.options.prices ?? PRICES, base)
  }

  #canSend({ job, prompt }: Asked): boolean {
    const foreign = foreignPart(prompt.request)
    if (foreign !== undefined) this.#note(`not sent: ${foreign}, whose cost its bytes do not tell`)
    try {
      this.#priceOf(job)
      return foreign === undefined
    } catch (error) {
      if (!(error instanceof UnsupportedError)) throw error
      this.#note(error.message)
      return false
    }
  }

  async #sendAll(group: readonly Asked[], total: number): Promise<void> {
    this.#lost = 0
    const send = async (asked: Asked) => {
      const isGone = this.folder.manifest.gone[asked.job.model] !== undefined
      const why = isGone ? 'the model is gone' : this.#isSpent ? 'the budget is spent' : 'no answers came'
      if (isGone || this.#isSpent || this.#lost >= MOST_LOST) return this.#note(why)
      await this.#send(asked)
      this.options.on?.progress?.({ done: ++this.#done, total, spent: this.ledger.spent })
    }
    // The first request finds out whether the model is there, and whether it gives log-probabilities.
    await send(group[0])
    await inPool(group.slice(1), send)
  }

  #body({ job: { model }, prompt }: Asked) {
    const hasLogprobs = this.folder.manifest.logprobs[model] ?? this.options.batch !== true
    return {
      ...{ ...sentOf(prompt.request), model: this.options.names?.[model] ?? model, store: false },
      max_completion_tokens: this.options.maxTokens ?? 512,
      // A project may have a dearer tier as its default.
      service_tier: 'default',
      ...(!REASONS.test(model) && { temperature: 0, ...(hasLogprobs && { logprobs: true, top_logprobs: 5 }) }),
    }
  }

  async #send(asked: Asked): Promise<void> {
    const [body, price, startedAt] = [this.#body(asked), this.#priceOf(asked.job), performance.now()]
    const { model } = asked.job
    let id = ''
    const beforeTry = async () => {
      id = `${asked.key}-${randomUUID()}`
      if (await this.ledger.reserve(id, worstCase(body, price))) return
      throw new StateError({ where: 'budget', what: 'the budget is spent' })
    }
    const request = { method: 'POST', body: JSON.stringify(body), signal: this.options.signal, tries: TRIES } as const
    try {
      const answer = await askJson(this.connection, '/chat/completions', { ...request, beforeTry })
      const cost = costIn(answer, price)
      if (cost !== undefined) await this.ledger.settle(id, cost)
      await this.#keep(asked, answer, cost ?? worstCase(body, price), performance.now() - startedAt)
      if (body.logprobs) await this.#saveLogprobs(model, true)
      this.#lost = 0
    } catch (error) {
      if (error instanceof StateError) {
        this.#isSpent = true
        return this.#note('the budget is spent')
      }
      if (!(error instanceof Refusal)) throw error
      const { status, reason, got } = error
      const isFinal = status >= 400 && status < 500 && ![408, 409, 429].includes(status)
      this.#lost = isFinal ? 0 : this.#lost + 1
      // A provider does not bill a request that it refuses. After any other failure it may have.
      if (isFinal) await this.ledger.settle(id, 0)
      if (status === 410 || (status === 404 && /model|deployment/i.test(`${reason} ${got}`))) {
        const day = new Date().toISOString().slice(0, 10)
        await this.folder.save({ gone: { ...this.folder.manifest.gone, [model]: day } })
        return this.#note('the model is gone')
      }
      // It may be the log-probabilities that it refuses.
      if (status === 400 && body.logprobs && this.folder.manifest.logprobs[model] === undefined) {
        await this.#saveLogprobs(model, false)
        return this.#send(asked)
      }
      this.#note(isFinal ? `refused: ${got}` : `no answer: ${got}`)
    }
  }

  async #saveLogprobs(model: string, hasThem: boolean): Promise<void> {
    const { logprobs } = this.folder.manifest
    if (logprobs[model] === undefined) await this.folder.save({ logprobs: { ...logprobs, [model]: hasThem } })
  }

  async #keep({ key, job: { model }, prompt }: Asked, answer: Item, cost: number, ms?: number): Promise<void> {
    const about = { key, model, origin: prompt.origin, where: prompt.where, cost, ms }
    const line = recordedOf(answer, about, this.folder.manifest.provider)
    if (line === undefined) return this.#note('refused: the answer has no message')
    await this.folder.append(RECORDED, line)
    this.answers++
  }

  /** Sends as many prompts as the budget has, in one batch. */
  async #sendBatch(group: readonly Asked[]): Promise<void> {
    const { model } = group[0].job
    const price = this.#priceOf(group[0].job)
    let total = 0
    const chosen = group
      .map((asked) => ({ key: asked.key, body: this.#body(asked) }))
      .filter(({ body }) => {
        const dollars = BATCH_SHARE * worstCase(body, price)
        const isIn = this.ledger.fits(total + dollars)
        if (isIn) total += dollars
        return isIn
      })
    this.#note('the budget is spent', group.length - chosen.length)
    if (chosen.length === 0) return
    const id = `batch-${randomUUID()}`
    await this.ledger.reserve(id, total, { model, keys: chosen.map(({ key }) => key) })
    const lines = chosen.map(({ key, body }) => {
      return `${JSON.stringify({ custom_id: key, method: 'POST', url: '/v1/chat/completions', body })}\n`
    })
    const form = new FormData()
    form.set('purpose', 'batch')
    form.set('file', new Blob(lines), 'lowrank.jsonl')
    const once = { method: 'POST', signal: this.options.signal, tries: 1 } as const
    try {
      const { id: input_file_id } = await askJson(this.connection, '/files', { ...once, body: form })
      const about = { endpoint: '/v1/chat/completions', completion_window: '24h', metadata: { lowrank: id } }
      await askJson(this.connection, '/batches', { ...once, body: JSON.stringify({ input_file_id, ...about }) })
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      this.#note(`no batch: ${error.got}`, chosen.length)
    }
  }

  /** Reads the batches that have ended, and returns how many go on. A later run finds them in the ledger. */
  async #collect(): Promise<number> {
    let open = 0
    for (const [id, { keys }] of [...this.ledger.batches]) {
      for (const key of keys) this.#known.add(key)
      const batch = await this.#find(id)
      if (batch === undefined) this.#note('in a batch that the provider does not list; it stays reserved', keys.length)
      else if (!ENDED.includes(String(batch.status))) open++
      else await this.#read(id, batch)
    }
    return open
  }

  async #find(id: string): Promise<Item | undefined> {
    const { connection, options } = this
    for (let after = ''; ; ) {
      const page = await askJson(connection, `/batches?limit=100${after && `&after=${after}`}`, options)
      const { data = [], has_more } = page as { data?: Item[]; has_more?: boolean }
      const found = data.find(({ metadata }) => isObject(metadata) && metadata.lowrank === id)
      if (found !== undefined || !has_more || data.length === 0) return found
      after = String(data.at(-1)!.id)
    }
  }

  async #read(id: string, { output_file_id: file }: Item): Promise<void> {
    const { connection, options } = this
    const path = `/files/${encodeURIComponent(String(file))}/content`
    const text = file ? await ask(connection, path, (answer) => answer.text(), { signal: options.signal }) : ''
    let total = 0
    for (const line of text.split('\n')) {
      const { custom_id, response } = (jsonIn(line) ?? {}) as {
        custom_id?: string
        response?: { status_code?: number; body?: Item }
      }
      const asked = this.#byKey.get(custom_id ?? '')
      if (asked === undefined || response?.body === undefined) continue
      const cost = BATCH_SHARE * (costIn(response.body, this.#priceOf(asked.job)) ?? 0)
      total += cost
      if (response.status_code === 200) await this.#keep(asked, response.body, cost)
    }
    await this.ledger.settle(id, total)
  }
}
