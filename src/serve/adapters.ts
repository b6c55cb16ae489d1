// The adapters of a server: the `model` of a request chooses one, and adapters come and go while requests run.

import type { AdapterSession } from '../api/index.js'
import type { Source } from '../core/base/bytes.js'
import { FileError, LowrankError, messageOf } from '../core/base/errors.js'
import type { Fields } from './fields.js'
import { HttpError, withoutPaths } from './http.js'
import { type Caller, SERVER } from './keys.js'

/**
 * Finds an adapter by the name or the path that a caller gave, in a place that the server allows. `mayDownload` is true
 * for `/v1/load_lora_adapter` alone.
 */
export type ResolveAdapter = (name: string, asked: { readonly mayDownload: boolean }) => Promise<Source | undefined>

/** Models that this server's jobs made, and aliases. Each caller knows of some of them. */
export interface TunedModels {
  /** The model that an alias stands for; any other name as it is. */
  target(name: string): string
  /** True for names of models that jobs made, also after they were deleted, and for aliases. */
  has(name: string): boolean
  /** Returns the place of a model, or undefined if it does not exist for this caller. */
  source(name: string, caller: Caller): Source | undefined
  /** Lists the models that a caller may use, with the times of their creation in seconds since 1970. */
  list(caller: Caller): readonly { readonly name: string; readonly created: number }[]
}

interface Served {
  readonly name: string
  /** Its name in the session, where an earlier adapter of the same name may still be in use. */
  readonly key: string
  readonly root: string
  /** The source that it was loaded from; undefined for the first adapters of the session, and for files in memory. */
  readonly place: string | undefined
  readonly created: number
  /** True if a request loaded it. Others stay. */
  readonly isLoaded: boolean
  usedAt: number
  uses: number
}

export interface RegistryOptions {
  /** Names of the base; the first one is shown. */
  readonly names: readonly string[]
  readonly resolve: ResolveAdapter | undefined
  readonly maxAdapters: number
  readonly onError: (error: unknown) => void
  readonly tuned?: TunedModels | undefined
  /** Names that the operator has given, each with the model that it stands for. */
  readonly aliases: Readonly<Record<string, string>>
}

export class AdapterRegistry {
  readonly #served = new Map<string, Served>()
  readonly #loading = new Map<string, { readonly place: string | undefined; readonly served: Promise<Served> }>()
  readonly #createdAt = seconds()
  #loads = 0

  constructor(
    private readonly session: AdapterSession,
    private readonly options: RegistryOptions,
  ) {
    for (const name of session.adapters) this.#add({ name, key: name, root: name, place: undefined, isLoaded: false })
  }

  /** All models, or the model that a path names. */
  list(named: string, caller: Caller): object {
    const { names, tuned } = this.options
    const card = (id: string, root: string, parent: string | null, created: number) => {
      return { id, object: 'model', created, owned_by: 'lowrank', root, parent }
    }
    const adapters = [...this.#served.values()].filter(({ name }) => !tuned?.has(name))
    const { aliases } = this.options
    const given = Object.keys(aliases).filter((name) => !names.includes(name) && !this.#served.has(name))
    const data = [
      ...given.map((name) => card(name, aliases[name], names[0], this.#createdAt)),
      ...names.map((name) => card(name, names[0], null, this.#createdAt)),
      ...adapters.map(({ name, root, created }) => card(name, root, names[0], created)),
      ...(tuned?.list(caller) ?? []).map(({ name, created }) => card(name, name, names[0], created)),
    ]
    if (named === '') return { object: 'list', data }
    const found = data.find(({ id }) => id === named)
    if (found !== undefined) return found
    throw this.#unknown(named, 'model', caller)
  }

  get loaded(): readonly string[] {
    return [...this.#served.keys()]
  }

  /** False for models that jobs of others made. */
  isKnownTo(caller: Caller, name: string): boolean {
    const { tuned } = this.options
    return !tuned?.has(name) || tuned.target(name) !== name || tuned.source(name, caller) !== undefined
  }

  #unknown(name: string, param: string, caller: Caller): HttpError {
    const known = this.loaded.filter((served) => this.isKnownTo(caller, served))
    return unknownModel(name, param, [...this.options.names, ...known])
  }

  /** `model` is a name or `base:name`, `adapter` is a mix. For admins, names that are not loaded are looked for too. */
  async choose({ model, adapter }: Fields, caller: Caller) {
    const { names } = this.options
    const taken: Served[] = []
    const end = () => {
      for (const served of taken.splice(0)) {
        served.uses--
        this.#leaveIfUnused(served)
      }
    }
    const take = async (name: string, param: string) => {
      const served = await this.#find(name, param, caller)
      served.usedAt = performance.now()
      served.uses++
      taken.push(served)
      return served
    }
    if (adapter !== undefined) {
      const mix: Record<string, number> = {}
      try {
        for (const [name, weight] of Object.entries(adapter as Record<string, number>)) {
          const { key } = await take(name, 'adapter')
          mix[key] = weight + (mix[key] ?? 0)
        }
      } catch (error) {
        end()
        throw error
      }
      return { adapter: mix, names: taken.map((served) => served.name), end }
    }
    const given = (model as string | undefined) ?? names[0]
    const asked = Object.hasOwn(this.options.aliases, given) ? this.options.aliases[given] : given
    if (names.includes(this.options.tuned?.target(asked) ?? asked)) return { adapter: null, names: [], end }
    const prefix = names.map((base) => `${base}:`).find((start) => asked.startsWith(start)) ?? ''
    const name = this.#served.has(asked) ? asked : asked.slice(prefix.length)
    const served = await take(name, 'model')
    return { adapter: served.key, names: [served.name], end }
  }

  async load(name: string, path: string): Promise<void> {
    const { resolve } = this.options
    if (resolve === undefined) throw notAllowed()
    this.#requireFree(name)
    const source = await resolve(path, { mayDownload: true }).catch(shownError)
    if (source === undefined) throw new HttpError(404, `There is no adapter ${path} here`, { param: 'lora_path' })
    // Another request may have taken the name while the source was looked for.
    this.#requireFree(name)
    const { hubId, commit } = source as { readonly hubId?: string; readonly commit?: string }
    await this.#load(name, source, commit === undefined ? path : `${hubId}@${commit}`)
  }

  isFree(name: string): boolean {
    const { names, tuned, aliases } = this.options
    if (Object.hasOwn(aliases, name)) return false
    return !names.includes(name) && !this.#served.has(name) && !this.#loading.has(name) && !tuned?.has(name)
  }

  /** True if a request for this name would be answered. */
  async has(model: string, caller: Caller): Promise<boolean> {
    try {
      const { end } = await this.choose({ model }, caller)
      end()
      return true
    } catch (error) {
      if (error instanceof HttpError && error.code === 'model_not_found') return false
      throw error
    }
  }

  #requireFree(name: string): void {
    if (this.isFree(name)) return
    throw new HttpError(400, `The adapter ${JSON.stringify(name)} is loaded already`, { param: 'lora_name' })
  }

  async unload(name: string): Promise<void> {
    if (this.options.resolve === undefined) throw notAllowed()
    const served = this.#served.get(name)
    if (served === undefined) throw unknownModel(name, 'lora_name', [...this.#served.keys()])
    this.#retire(served)
  }

  /** Keeps a deleted model from new requests. */
  forget(name: string): void {
    const served = this.#served.get(name)
    if (served !== undefined) this.#retire(served)
  }

  /** Keeps an adapter from new requests. It leaves the session after the last request that uses it. */
  #retire(served: Served): void {
    this.#served.delete(served.name)
    this.#leaveIfUnused(served)
  }

  #leaveIfUnused(served: Served): void {
    const isGone = this.#served.get(served.name) !== served
    if (isGone && served.uses === 0) this.session.remove(served.key).catch(this.options.onError)
  }

  async #find(asked: string, param: string, caller: Caller): Promise<Served> {
    const { tuned } = this.options
    const name = tuned?.target(asked) ?? asked
    const made = tuned?.has(name) ? tuned.source(name, asked === name ? caller : SERVER) : undefined
    if (made === undefined && tuned?.has(name)) throw this.#unknown(asked, param, caller)
    const served = (await this.#loading.get(name)?.served) ?? this.#served.get(name)
    if (served !== undefined) return served
    const isSought = caller.isAdmin && !name.includes(',')
    const source = made ?? (isSought ? await this.options.resolve?.(name, { mayDownload: false }) : undefined)
    if (source === undefined) throw this.#unknown(asked, param, caller)
    // Another request may have loaded it while the source was looked for, under this name or by another way to it.
    const place = placeOf(source)
    const isIt = (known: { readonly place: string | undefined }) => place !== undefined && known.place === place
    const loading = this.#loading.get(name) ?? [...this.#loading.values()].find(isIt)
    if (loading !== undefined) return loading.served
    return this.#served.get(name) ?? [...this.#served.values()].find(isIt) ?? this.#load(name, source, name)
  }

  async #load(name: string, source: Source, root: string): Promise<Served> {
    const served = this.#loadNow(name, source, root)
    this.#loading.set(name, { place: placeOf(source), served })
    try {
      return await served
    } finally {
      this.#loading.delete(name)
    }
  }

  async #loadNow(name: string, source: Source, root: string): Promise<Served> {
    const key = this.session.adapters.includes(name) ? `${name}#${++this.#loads}` : name
    await this.session.add(key, source).catch((error) => {
      // Callers learn no paths of the server, but the log names the damaged file.
      const what = `its model cannot be loaded: ${messageOf(error)}`
      if (this.options.tuned?.has(name))
        this.options.onError(new FileError({ where: String(source), what, cause: error }))
      shownError(error)
    })
    const served = this.#add({ name, key, root, place: placeOf(source), isLoaded: true })
    const loaded = [...this.#served.values()].filter((loadedBefore) => loadedBefore.isLoaded && loadedBefore !== served)
    const tooMany = Math.max(0, this.#served.size - this.options.maxAdapters)
    for (const oldest of loaded.sort((a, b) => a.usedAt - b.usedAt).slice(0, tooMany)) this.#retire(oldest)
    return served
  }

  #add(from: Pick<Served, 'name' | 'key' | 'root' | 'place' | 'isLoaded'>): Served {
    const served = { ...from, created: seconds(), usedAt: performance.now(), uses: 0 }
    this.#served.set(from.name, served)
    return served
  }
}

/** The same text for two spellings of one folder. */
function placeOf(source: Source): string | undefined {
  if (typeof source === 'string') return source
  return 'name' in source && typeof source.name === 'string' ? source.name : undefined
}

/** @throws HttpError for an adapter that is not there, not valid, or of another base */
function shownError(error: unknown): never {
  if (!(error instanceof LowrankError)) throw error
  throw new HttpError(400, `The adapter cannot be loaded: ${withoutPaths(error.message)}`, { code: 'adapter_invalid' })
}

export function seconds(): number {
  return Math.floor(Date.now() / 1000)
}

function notAllowed(): HttpError {
  return new HttpError(403, 'Loading adapters is off here. Start the server with --allow-loading', {
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
