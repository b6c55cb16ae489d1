// What all routes of a server share: the session, its adapters, the queue, the counts, and the jobs.

import type { AdapterSession } from '../api/index.js'
import { AdapterRegistry } from './adapters.js'
import { Gate } from './gate.js'
import type { HandlerOptions } from './handler-options.js'
import { HttpError, httpError, withoutPaths } from './http.js'
import type { Jobs } from './jobs/training.js'
import { KeptResponses } from './kept-responses.js'
import type { Caller } from './keys.js'
import { Metrics } from './metrics.js'
import type { Call } from './route.js'
import { Upstreams } from './upstream/upstreams.js'

/** New tokens of an answer if neither the model nor the server has a limit. */
const TOKENS_WITHOUT_CONTEXT = 4096

/** Names of OpenAI's and Anthropic's models. */
const OTHERS = ['gpt-*', 'o[0-9]*', 'chatgpt-*', 'claude-*', 'text-embedding-*']

function fits(pattern: string, name: string): boolean {
  const source = pattern.replaceAll(/\[0-9\]|[.*+?^${}()|[\]\\]/g, (part) => {
    return part === '*' ? '.*' : part === '[0-9]' ? '\\d' : `\\${part}`
  })
  return new RegExp(`^${source}$`, 's').test(name)
}

export class Serving {
  readonly registry: AdapterRegistry
  readonly upstreams: Upstreams
  readonly gate: Gate
  readonly responses = new KeptResponses()
  readonly metrics = new Metrics()
  readonly maxAdapters: number
  /** The most new tokens of an answer. */
  readonly maxTokens: number
  isStopping = false

  /** @param names the names of the base */
  constructor(
    readonly session: AdapterSession,
    readonly names: readonly string[],
    readonly options: HandlerOptions,
    readonly jobs: Jobs | undefined,
  ) {
    const {
      resolveAdapter: resolve,
      maxAdapters = 64,
      maxRunning = options.session?.maxBatch ?? 8,
      maxQueue = 64,
    } = options
    const onError = (error: unknown) => void this.told(error)
    this.upstreams = new Upstreams(options)
    this.maxAdapters = maxAdapters
    this.registry = new AdapterRegistry(session, {
      ...{ names, resolve, maxAdapters, onError, tuned: jobs?.models, aliases: this.upstreams.names },
    })
    jobs?.models.attach(this.registry)

    this.gate = new Gate(maxRunning, maxQueue)
    this.maxTokens = options.maxTokens ?? session.model.contextLength ?? TOKENS_WITHOUT_CONTEXT
  }

  /** An error as the caller may see it. The operator hears of what the caller did not cause. */
  told(error: unknown, signal?: AbortSignal): HttpError {
    if (signal?.aborted) return new HttpError(499, 'The caller left')
    const told = httpError(error, (text) =>
      withoutPaths(text.replaceAll(this.session.model.directory.name, this.names[0])),
    )
    if (told.status >= 500 && !(error instanceof HttpError))
      (this.options.on ?? { error: console.error }).error?.(error)
    return told
  }

  /** The name under which a request knows the model. */
  modelOf({ fields }: Call): string {
    return (fields.model as string | undefined) ?? this.names[0]
  }

  /** The name of the model that answers a request for this one: `defaultModel` for those of others. */
  async meant(asked: unknown, caller: Caller): Promise<unknown> {
    const { defaultModel, defaultModelFor = OTHERS } = this.options
    if (defaultModel === undefined || typeof asked !== 'string' || asked.startsWith('ft:')) return asked
    if (!defaultModelFor.some((pattern) => fits(pattern, asked))) return asked
    return (await this.registry.has(asked, caller)) ? asked : defaultModel
  }

  /** Waits for a place. */
  async enter({ fields, caller, entry, request: { headers } }: Call, left: AbortSignal) {
    const { adapter, names, end: release } = await this.registry.choose(fields, caller)
    entry.model = names.join('+') || this.names[0]
    const { timeoutSeconds = 600 } = this.options
    const asked = Number(headers.get('x-request-timeout') ?? timeoutSeconds)
    const seconds = asked > 0 ? Math.min(asked, timeoutSeconds) : timeoutSeconds
    const over = new AbortController()
    const late = new HttpError(503, `The answer took longer than ${seconds} seconds`, { code: 'timeout' })
    const timer = setTimeout(() => over.abort(late), 1000 * seconds)
    const end = () => {
      clearTimeout(timer)
      release()
    }
    const signal = AbortSignal.any([left, over.signal])
    const priority = Math.max(caller.priority, (fields.priority as number | undefined) ?? caller.priority)
    for (const name of names) this.metrics.waits(name, 1)
    const admitted = this.gate.enter({ key: caller.key ?? '', priority, signal }).finally(() => {
      for (const name of names) this.metrics.waits(name, -1)
    })
    admitted.catch(end)
    const leave = await admitted
    this.jobs?.serves(this.gate.running)
    return {
      adapter,
      signal,
      leave: () => {
        end()
        leave()
        this.jobs?.serves(this.gate.running)
      },
    }
  }
}

export function notTraining(field = ''): HttpError {
  const message = `${field}Nothing is stored or trained here. Start the server with --train FOLDER`
  return field === ''
    ? new HttpError(404, message, { code: 'not_found' })
    : new HttpError(400, message, { param: 'store' })
}

export function stopping(): HttpError {
  return new HttpError(503, 'The server is stopping', { retryAfter: 5 })
}
