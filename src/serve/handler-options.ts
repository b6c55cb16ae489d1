// Options of a server.

import type { Model, OpenSessionOptions } from '../api/index.js'
import type { Source } from '../core/base/bytes.js'
import type { ResolveAdapter } from './adapters.js'
import type { Training } from './jobs/training.js'
import type { ApiKey } from './keys.js'
import type { RequestEntry } from './route.js'
import type { UpstreamOptions } from './upstream/upstreams.js'

/** Options of `createHandler`. */
export interface HandlerOptions extends UpstreamOptions {
  /** The base model: an open one, or any source that `loadModel` accepts. */
  model: Model | Source
  /** The first adapters: name → adapter. Requests choose by this name. */
  adapters?: OpenSessionOptions['adapters']
  /**
   * How the session is opened: device, threads, accuracyLevel and the like. `allow` names the parts that later adapters
   * may have. Default `['lora']`, if adapters can be loaded.
   */
  session?: Omit<OpenSessionOptions, 'adapters'> | undefined
  /**
   * The names under which the base is served. Default: the last part of the model's name.
   * @help a name under which the base is served, such as gpt-4o-mini. Default: the model's name
   */
  servedModelName?: string | readonly string[] | undefined
  /**
   * The base or an adapter that answers requests for the models of others, so that code runs unchanged. The answer
   * names it. Default: such names get status 404.
   * @flag NAME
   */
  defaultModel?: string | undefined
  /**
   * The names that `defaultModel` answers; `*` stands for any text, and `[0-9]` for a digit. Names that begin with
   * `ft:` are never among them. Default: those of OpenAI's and Anthropic's models.
   */
  defaultModelFor?: readonly string[] | undefined
  /** Text of a chat template (Jinja). Default: the adapter's, else the one in the model's folder. */
  chatTemplate?: string | undefined
  /** The keys: callers must send one of them. Texts are keys without a name. Default: none is needed. */
  apiKeys?: readonly (string | ApiKey)[] | undefined
  /**
   * Values of the header Host that are answered, without ports. Default: all. A server on localhost should name its
   * own, so that no page reaches it by another name.
   */
  hosts?: readonly string[] | undefined
  /**
   * Pages that may call from a browser, such as `https://example.com`. Default: none but pages of the server itself.
   */
  origins?: readonly string[] | undefined
  /**
   * Finds an adapter that is not loaded yet by its name. `folderOfAdapters` makes one for a folder, and `hubAdapters`
   * for the Hub. If there are keys, only callers with an admin key load adapters. Default: nothing is loaded.
   */
  resolveAdapter?: ResolveAdapter | undefined
  /**
   * Answers OpenAI's routes for files and fine-tuning: the value that `trainingIn` makes for a folder. It needs an
   * admin key in `apiKeys`, and `hosts`. Default: nothing is trained.
   */
  training?: Training | undefined
  /**
   * The largest number of adapters. Above it, the loaded adapter that was not used for the longest time leaves.
   * @range an integer of at least 1
   * @default 64
   * @help the largest number of adapters; the least used leaves
   */
  maxAdapters?: number | undefined
  /**
   * Requests that run at the same time. Default: the session's `maxBatch`, which is 8.
   * @range an integer of at least 1
   * @help requests that run at the same time. Default: 8
   */
  maxRunning?: number | undefined
  /**
   * Requests that wait. The next gets status 429.
   * @range an integer of at least 0
   * @default 64
   */
  maxQueue?: number | undefined
  /**
   * The most new tokens of an answer, also if a request asks for more. Default: the model's context.
   * @range an integer of at least 1
   */
  maxTokens?: number | undefined
  /**
   * Bytes of a body. Default 8 MiB.
   * @range an integer of at least 1
   */
  maxBodyBytes?: number | undefined
  /**
   * Seconds that a request may take, waiting included. Callers ask for less with the header `x-request-timeout`.
   * @range an integer of at least 1
   * @default 600
   */
  timeoutSeconds?: number | undefined
  /**
   * Answers `GET /` with a page to talk to the model in a browser. The page needs no key, but its requests do.
   * Default: false.
   */
  page?: boolean | undefined
  /** Callbacks. Default: errors go to console.error. `{}` is silent. */
  on?: HandlerEvents | undefined
}

/** Callbacks of a handler. */
export interface HandlerEvents {
  /** Called for each request when its answer ends. */
  request?(entry: RequestEntry): void
  /** Called with errors that are answered with status 500. */
  error?(error: unknown): void
}
