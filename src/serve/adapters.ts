// The adapters of a server: the `model` of a request chooses one, and adapters come and go while requests run.

import { LowrankError } from '../base/errors.js'
import type { AdapterSession } from '../index/session.js'
import type { Source } from '../index/sources.js'
import type { AdapterChoice } from '../infer/adapters/choice.js'
import type { Fields } from './fields.js'
import { HttpError } from './http.js'

/** Finds an adapter by the name or the path that a caller gave, inside the folder that the server allows. */
export type ResolveAdapter = (name: string) => Promise<Source | undefined>

interface Served {
  readonly name: string
  /** The place that it was loaded from. */
  readonly root: string
  readonly created: number
  /** Loaded by a caller: it may leave again. */
  readonly isLoaded: boolean
  usedAt: number
}

export interface RegistryOptions {
  /** The name of the base. */
  readonly base: string
  readonly resolve: ResolveAdapter | undefined
  readonly maxAdapters: number
}

export class AdapterRegistry {
  readonly #session: AdapterSession
  readonly #options: RegistryOptions
  readonly #served = new Map<string, Served>()
  readonly #loading = new Map<string, Promise<void>>()
  readonly #createdAt = seconds()

  constructor(session: AdapterSession, options: RegistryOptions) {
    this.#session = session
    this.#options = options
    for (const name of session.adapters) this.#add(name, name, false)
  }

  /** The list of `/v1/models`. */
  list(): object {
    const { base } = this.#options
    const card = (id: string, root: string, parent: string | null, created: number) => {
      return { id, object: 'model', created, owned_by: 'lowrank', root, parent }
    }
    const adapters = [...this.#served.values()].map(({ name, root, created }) => card(name, root, base, created))
    return { object: 'list', data: [card(base, base, null, this.#createdAt), ...adapters] }
  }

  /**
   * The choice that a request makes by `model` (a name, or `base:name`) or by `adapter` (a mix).
   *
   * @throws HttpError 404 for a name that is not served
   */
  async choose({ model, adapter }: Fields): Promise<AdapterChoice> {
    const { base } = this.#options
    if (adapter !== undefined) {
      const mix = adapter as Readonly<Record<string, number>>
      for (const name of Object.keys(mix)) await this.#use(name, 'adapter')
      return mix
    }
    if (model === undefined || model === base) return null
    const asked = model as string
    const name = asked.startsWith(`${base}:`) && !this.#served.has(asked) ? asked.slice(base.length + 1) : asked
    await this.#use(name, 'model')
    return name
  }

  /** Loads an adapter from the allowed folder, as vLLM's route does. */
  async load(name: string, path: string): Promise<void> {
    const { resolve, base } = this.#options
    if (resolve === undefined) throw notAllowed()
    if (name === base || this.#served.has(name)) {
      throw new HttpError(400, `The adapter ${JSON.stringify(name)} is loaded already`, { param: 'lora_name' })
    }
    const source = await resolve(path)
    if (source === undefined) throw new HttpError(404, `There is no adapter ${path} here`, { param: 'lora_path' })
    await this.#load(name, source, path)
  }

  async unload(name: string): Promise<void> {
    if (this.#options.resolve === undefined) throw notAllowed()
    if (!this.#served.delete(name)) throw unknownModel(name, 'lora_name', [...this.#served.keys()])
    await this.#session.remove(name)
  }

  async #use(name: string, param: string): Promise<void> {
    await this.#loading.get(name)
    const served = this.#served.get(name)
    if (served !== undefined) {
      served.usedAt = performance.now()
      return
    }
    const source = await this.#options.resolve?.(name)
    if (source === undefined) throw unknownModel(name, param, [this.#options.base, ...this.#served.keys()])
    await this.#load(name, source, name)
  }

  /** Loads once, whoever asks for it at the same time. */
  async #load(name: string, source: Source, root: string): Promise<void> {
    const loading = this.#loading.get(name) ?? this.#loadNow(name, source, root)
    this.#loading.set(name, loading)
    try {
      await loading
    } finally {
      this.#loading.delete(name)
    }
  }

  async #loadNow(name: string, source: Source, root: string): Promise<void> {
    try {
      await this.#session.add(name, source)
    } catch (error) {
      if (!(error instanceof LowrankError)) throw error
      throw new HttpError(400, `The adapter ${JSON.stringify(name)} cannot be loaded: ${error.message}`, {
        code: 'adapter_invalid',
      })
    }
    this.#add(name, root, true)
    const loaded = [...this.#served.values()].filter(({ isLoaded }) => isLoaded).sort((a, b) => a.usedAt - b.usedAt)
    for (const { name: oldest } of loaded.slice(0, Math.max(0, this.#served.size - this.#options.maxAdapters))) {
      this.#served.delete(oldest)
      await this.#session.remove(oldest)
    }
  }

  #add(name: string, root: string, isLoaded: boolean): void {
    this.#served.set(name, { name, root, isLoaded, created: seconds(), usedAt: performance.now() })
  }
}

/** The present as a Unix time in whole seconds. */
export function seconds(): number {
  return Math.floor(Date.now() / 1000)
}

function notAllowed(): HttpError {
  return new HttpError(403, 'Loading adapters is off here. Start the server with --allow-loading FOLDER', {
    type: 'permission_error',
  })
}

function unknownModel(name: string, param: string, served: readonly string[]): HttpError {
  const shown = served.slice(0, 20).join(', ')
  return new HttpError(404, `The model ${JSON.stringify(name)} does not exist. There are: ${shown}`, {
    param,
    code: 'model_not_found',
  })
}
