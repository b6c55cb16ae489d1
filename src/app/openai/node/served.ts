// What a server takes from a folder: adapters under the names of the old models, and where chats are recorded.

import { randomUUID } from 'node:crypto'
import { attempt, ConfigError } from '../../../core/base/errors.js'
import { checkAddress } from '../../../core/base/post-json.js'
import type { AliasTarget, Exchange } from '../../../serve/node/entry.js'
import { jobsIn } from '../plan.js'
import { costIn, PRICES, type Price, type Prices, priceOf, worstCase } from '../prices.js'
import { foreignPart, type Request } from '../prompts.js'
import type { Item } from '../provider.js'
import { askJson } from './client.js'
import { Folder } from './folder.js'
import { Ledger } from './ledger.js'
import { keyOf, RECORDED, recordedOf, sentOf } from './recorded.js'

export interface ServedOptions {
  /** The folder of an export, with jobs that were moved. */
  readonly dir: string
  /** The base whose adapters are served. Default: that of the first job. */
  readonly base?: string | undefined
  /** The server of the old models, up to /v1, which is asked first until the day on which a model ends. */
  readonly upstream?: string | undefined
  readonly upstreamKey?: string | undefined
  /** Keeps the chats that the old models answer. */
  readonly isRecorded?: boolean | undefined
  /** Our models answer, and the old one is asked too, for this share of the chats. Needs `budget`. */
  readonly compare?: number | undefined
  /** Dollars for the folder, over all runs. */
  readonly budget?: number | undefined
  readonly prices?: Prices | undefined
  /** Between 0 and 1. Default: Math.random. */
  readonly draw?: (() => number) | undefined
}

export interface Served {
  readonly base: string
  /** The folders of adapters, by the names of the old models. */
  readonly adapters: Readonly<Record<string, string>>
  readonly aliases: Readonly<Record<string, AliasTarget>>
  readonly record?: ((exchange: Exchange) => Promise<void>) | undefined
  close(): Promise<void>
}

const MOST_TOKENS = 512

/** @throws ConfigError if the folder has no adapter of the base, and for options that need others */
export async function openServed(options: ServedOptions): Promise<Served> {
  const { dir, upstream, isRecorded, compare, budget } = options
  if (compare !== undefined && (upstream === undefined || budget === undefined))
    throw new ConfigError({ where: 'compare', what: 'needs `upstream`, the server of the old models, and `budget`' })
  if (upstream !== undefined) checkAddress(upstream, 'upstream')
  const opened = await Folder.open(dir)
  const { moved } = opened.manifest
  const writes = isRecorded === true || compare !== undefined
  const folder = writes ? await Folder.take(dir) : opened
  try {
    const base = options.base ?? folder.baseOf()
    const here = moved.filter((job) => job.adapter !== undefined && job.base === base)
    if (here.length === 0) {
      const hint = 'Run lowrank openai move with this folder and this base first'
      throw new ConfigError({ where: dir, what: `it has no adapter of ${base}`, hint })
    }
    const jobs = new Map(jobsIn(folder.provider, await folder.lists()).map((found) => [found.job.model, found]))
    const targets = here.map(({ model }) => {
      return [model, { upstream: { url: upstream!, when: jobs.get(model)?.end } }] as const
    })
    const second = compare === undefined ? undefined : await Ledger.open(folder, budget)
    const pending = new Set<Promise<void>>()
    const recordNow = async (exchange: Exchange) => {
      const old = jobs.get(exchange.model)?.job.base
      const isOwn = exchange.url === undefined
      if (old === undefined || (isOwn ? (options.draw ?? Math.random)() >= (compare ?? 0) : !isRecorded)) return
      if (!isOwn) return append(folder, exchange, exchange.answer, priced(options, old, exchange.answer))
      const answer = await askSecond(options, second!, exchange, priceOf(options.prices ?? PRICES, old))
      if (answer !== undefined) await append(folder, exchange, answer.body, answer.cost, exchange.answer)
    }
    const record = (exchange: Exchange) => {
      const recording = recordNow(exchange).finally(() => pending.delete(recording))
      pending.add(recording)
      return recording
    }
    return {
      base,
      adapters: Object.fromEntries(here.map(({ model, adapter }) => [model, folder.at(adapter!)])),
      aliases: upstream === undefined || compare !== undefined ? {} : Object.fromEntries(targets),
      ...(writes && { record }),
      async close() {
        await Promise.allSettled(pending)
        await folder.close()
      },
    }
  } catch (error) {
    await folder.close()
    throw error
  }
}

/** The caller pays, so that a model without a provider price is no error. */
function priced({ prices = PRICES }: ServedOptions, base: string, answer: Item): number {
  return attempt(() => costIn(answer, priceOf(prices, base))).value ?? 0
}

/** Sends a chat that our model has answered to the old one too, once; undefined if the budget is spent. */
async function askSecond({ upstream, upstreamKey }: ServedOptions, ledger: Ledger, exchange: Exchange, price: Price) {
  const { model, request } = exchange
  const limit = Number(request.max_completion_tokens ?? request.max_tokens ?? MOST_TOKENS)
  const sent = { ...sentOf(request as Request), model, max_completion_tokens: limit, store: false, temperature: 0 }
  const id = `second-${randomUUID()}`
  if (foreignPart(sent) !== undefined || !(await ledger.reserve(id, worstCase(sent, price)))) return undefined
  const headers: Record<string, string> = upstreamKey ? { authorization: `Bearer ${upstreamKey}` } : {}
  const options = { method: 'POST', body: JSON.stringify(sent), tries: 1 } as const
  const body = await askJson({ url: checkAddress(upstream, 'upstream'), headers }, '/chat/completions', options)
  const cost = costIn(body, price) ?? worstCase(sent, price)
  await ledger.settle(id, cost)
  return { body, cost }
}

async function append(folder: Folder, { model, request, ms }: Exchange, answer: Item, cost: number, ours?: Item) {
  const asked = request as Request
  const about = {
    key: keyOf(model, asked),
    model,
    origin: 'served',
    where: new Date().toISOString(),
    cost,
    ms,
  } as const
  const line = recordedOf(answer, { ...about, request: asked }, folder.manifest.provider)
  const own = ours && recordedOf(ours, about, 'own')
  if (line !== undefined) await folder.append(RECORDED, { ...line, ...(own && { ours: own.answer }) })
}
