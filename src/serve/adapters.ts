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

/** Where the name of a model of a job, or of an alias, leads. */
export interface Tuned {
  /** The model that an alias stands for, which may be any; else the name itself. */
  readonly target: string
  /** The place of the model, or undefined if it does not exist for this caller, or is none of a job. */
  readonly source: string | undefined
  /** True if a job made the model, also after it was deleted. */
  readonly isMade: boolean
  readonly isAlias?: boolean
}

/** Models that this server's jobs made, and aliases. Each caller knows of some of them. */
export interface TunedModels {
  /** Finds those of the names that models of jobs and aliases have. */
  find(names: readonly string[], caller: Caller): Promise<ReadonlyMap<string, Tuned>>
  /** Lists the models that a caller may use, with the times of their creation in seconds since 1970. */
  list(caller: Caller): Promise<readonly { readonly name: string; readonly created: number }[]>
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
  async list(named: string, caller: Caller): Promise<object> {
    const { names, tuned } = this.options
    const card = (id: string, root: string, parent: string | null, created: number) => {
      return { id, object: 'model', created, owned_by: 'lowrank', root, parent }
    }
    const ofJobs = await this.#tuned(this.loaded, caller)
    const adapters = [...this.#served.values()].filter(({ name }) => !ofJobs.has(name))
    const { aliases } = this.options
    const given = Object.keys(aliases).filter((name) => !names.includes(name) && !this.#served.has(name))
    const data = [
      ...given.map((name) => card(name, aliases[name], names[0], this.#createdAt)),
      ...names.map((name) => card(name, names[0], null, this.#createdAt)),
      ...adapters.map(({ name, root, created }) => card(name, root, names[0], created)),
      ...((await tuned?.list(caller)) ?? []).map(({ name, created }) => card(name, name, names[0], created)),
    ]
    if (named === '') return { object: 'list', data }
    const found = data.find(({ id }) => id === named)
    if (found !== undefined) return found
    throw await this.#unknown(named, 'model', caller)
  }

  async #tuned(names: readonly string[], caller: Caller): Promise<ReadonlyMap<string, Tuned>> {
    return (await this.options.tuned?.find(names, caller)) ?? new Map()
  }

  get loaded(): readonly string[] {
    return [...this.#served.keys()]
  }

  /** Those of the names that are not of models which jobs of others made. */
  async knownTo(caller: Caller, names: readonly string[]): Promise<readonly string[]> {
    const ofJobs = await this.#tuned(names, caller)
    return names.filter((name) => {
      const tuned = ofJobs.get(name)
      return tuned === undefined || tuned.isAlias || tuned.source !== undefined
    })
  }

  async #unknown(name: string, param: string, caller: Caller): Promise<HttpError> {
    return unknownModel(name, param, [...this.options.names, ...(await this.knownTo(caller, this.loaded))])
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
    if (names.includes(asked)) return { adapter: null, names: [], end }
    const alias = (await this.#tuned([asked], caller)).get(asked)
    if (alias !== undefined && names.includes(alias.target)) return { adapter: null, names: [], end }
    const prefix = names.map((base) => `${base}:`).find((start) => asked.startsWith(start)) ?? ''
    const name = this.#served.has(asked) ? asked : asked.slice(prefix.length)
    const served = await take(name, 'model')
    return { adapter: served.key, names: [served.name], end }
  }

  async load(name: string, path: string): Promise<void> {
    const { resolve } = this.options
    if (resolve === undefined) throw notAllowed()
    await this.#requireFree(name)
    const source = await resolve(path, { mayDownload: true }).catch(shownError)
    if (source === undefined) throw new HttpError(404, `There is no adapter ${path} here`, { param: 'lora_path' })
    // Another request may have taken the name while the source was looked for.
    await this.#requireFree(name)
    if (this.#isServed(name)) throw alreadyLoaded(name)
    const { hubId, commit } = source as { readonly hubId?: string; readonly commit?: string }
    await this.#load(name, source, commit === undefined ? path : `${hubId}@${commit}`)
  }

  async isFree(name: string): Promise<boolean> {
    const { names, aliases } = this.options
    if (names.includes(name) || Object.hasOwn(aliases, name)) return false
    return !(await this.#tuned([name], SERVER)).has(name) && !this.#isServed(name)
  }

  #isServed(name: string): boolean {
    return this.#served.has(name) || this.#loading.has(name)
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

  async #requireFree(name: string): Promise<void> {
    if (!(await this.isFree(name))) throw alreadyLoaded(name)
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
    const tuned = (await this.#tuned([asked], caller)).get(asked)
    const { target: name = asked, source: made } = tuned ?? {}
    if (made === undefined && tuned?.isMade) throw await this.#unknown(asked, param, caller)
    const served = (await this.#loading.get(name)?.served) ?? this.#served.get(name)
    if (served !== undefined) return served
    const isSought = caller.isAdmin && !name.includes(',')
    const source = made ?? (isSought ? await this.options.resolve?.(name, { mayDownload: false }) : undefined)
    if (source === undefined) throw await this.#unknown(asked, param, caller)
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
    await this.session.add(key, source).catch(async (error) => {
      // Callers learn no paths of the server, but the log names the damaged file.
      const what = `its model cannot be loaded: ${messageOf(error)}`
      if ((await this.#tuned([name], SERVER)).has(name))
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

function alreadyLoaded(name: string): HttpError {
  return new HttpError(400, `The adapter ${JSON.stringify(name)} is loaded already`, { param: 'lora_name' })
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
