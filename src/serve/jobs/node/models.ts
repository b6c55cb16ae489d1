// The models that jobs made, which the server knows by name from then on, and aliases, which are further names.

import { isUtf8 } from 'node:buffer'
import { readFile, rename } from 'node:fs/promises'
import path from 'node:path'
import { codeOf, fileError, RUN_FILES, removeWritten } from '../../../api/node/parts.js'
import { FileError } from '../../../core/base/errors.js'
import { isObject, jsonIn, kind, listOf, NAME } from '../../../core/base/options.js'
import { Turns } from '../../../core/base/turns.js'
import type { AdapterRegistry, TunedModels } from '../../adapters.js'
import { seconds } from '../../adapters.js'
import { HttpError } from '../../http.js'
import { type Caller, SERVER } from '../../keys.js'
import type { Call } from '../../route.js'
import { ENDED, type Job, modelName } from '../job.js'
import { mayUse, type Store, writePrivate } from './store.js'

export const ALIASES = 'aliases.json'

interface Made {
  readonly job: Job
  readonly folder: string
  readonly created: number
}

interface Alias {
  readonly name: string
  readonly model: string
  readonly created: number
}

export class Models implements TunedModels {
  readonly #made = new Map<string, Made>()
  #aliases = new Map<string, Alias>()
  /** The file of aliases cannot be read. Nothing is written over it. */
  #isUnreadable = false
  /** A damaged file of aliases, until a change of them puts it aside. */
  #damaged: string | undefined
  #registry: AdapterRegistry | undefined
  readonly #turns = new Turns()

  private constructor(
    private readonly jobs: Store<Job>,
    private readonly aliasFile: string,
  ) {}

  static async open(folder: string, jobs: Store<Job>, onError: (error: unknown) => void): Promise<Models> {
    const models = new Models(jobs, path.join(folder, ALIASES))
    for (const job of jobs.all()) models.add(job)
    await models.#readAliases(onError)
    return models
  }

  attach(registry: AdapterRegistry): void {
    this.#registry = registry
  }

  /** Serves what a job has made so far. */
  add(job: Job): void {
    const folder = this.jobs.folderOf(job)
    for (const { step, created_at: created, isResult } of job.checkpoints) {
      const name = modelName(job, isResult ? undefined : step)
      const place = isResult ? 'run' : path.join('checkpoints', `step-${step}`)
      if (isResult && job.status === 'cancelled') this.#made.delete(name)
      else this.#made.set(name, { job, folder: path.join(folder, place), created })
    }
  }

  target(name: string): string {
    return this.#aliases.get(name)?.model ?? name
  }

  has(name: string): boolean {
    return this.#made.has(name) || this.#aliases.has(name)
  }

  source(name: string, caller: Caller): string | undefined {
    const made = this.#made.get(name)
    if (made === undefined || made.job.deleted.includes(name) || !mayUse(made.job, caller)) return undefined
    return made.folder
  }

  list(caller: Caller) {
    const made = [...this.#made].filter(([name]) => this.source(name, caller) !== undefined)
    return [...made.map(([name, { created }]) => ({ name, created })), ...this.#aliases.values()]
  }

  async remove({ id: name, caller }: Call): Promise<object> {
    const folder = this.source(name, caller)
    if (folder === undefined) {
      throw new HttpError(404, `There is no model ${name.slice(0, 300)} that a job of yours made`, {
        param: 'model',
        code: 'model_not_found',
      })
    }
    const alias = [...this.#aliases.values()].find(({ model }) => model === name)
    // Whoever may not make aliases learns only that there is one.
    if (alias !== undefined) throw conflict(`An alias${caller.isAdmin ? ` (${alias.name})` : ''} names this model`)
    const needing = this.jobs.all().find(({ start, status }) => start === folder && !ENDED.includes(status))
    if (needing !== undefined) throw conflict('A job trains this model further')
    const { job } = this.#made.get(name)!
    job.deleted = [...job.deleted, name]
    await this.jobs.put(job)
    this.#registry?.forget(name)
    await removeWritten(folder, (file) => RUN_FILES.includes(file))
    return { id: name, object: 'model', deleted: true }
  }

  aliases(): readonly object[] {
    return [...this.#aliases.values()].map(wireAlias)
  }

  /** From now on requests for the alias get this model; those that have begun keep theirs. */
  async setAlias({ fields }: Call): Promise<object> {
    const { name, model: asked } = fields as { name: string; model: string }
    return this.publish(name, asked)
  }

  /** @throws HttpError if the name is that of a model, or if aliases cannot be kept */
  requireName(name: string): void {
    if (this.#isUnreadable) throw new HttpError(503, 'The aliases cannot be read: the log of the server says why')
    if (!this.#aliases.has(name) && !this.#registry!.isFree(name)) throw conflict(`${name} is the name of a model`)
  }

  async publish(name: string, asked: string): Promise<object> {
    this.requireName(name)
    const model = this.target(asked)
    // It is loaded before requests ask for it.
    const { end } = await this.#registry!.choose({ model }, SERVER)
    end()
    this.requireName(name)
    const alias = { name, model, created: seconds() }
    this.#aliases.set(name, alias)
    await this.#write()
    return wireAlias(alias)
  }

  async removeAlias({ id: name }: Call): Promise<object> {
    if (!this.#aliases.delete(name)) throw new HttpError(404, `There is no alias ${name.slice(0, 300)}`)
    await this.#write()
    return { id: name, object: 'alias', deleted: true }
  }

  async #readAliases(onError: (error: unknown) => void): Promise<void> {
    const file = this.aliasFile
    const bytes = await readFile(file).catch((error) => {
      if (codeOf(error) === 'ENOENT') return Buffer.from('[]')
      this.#isUnreadable = true
      onError(fileError(file, 'cannot be read, and stays as it is', error))
      return Buffer.alloc(0)
    })
    const text = bytes.toString()
    const stored = jsonIn(text)
    const isWhole = IS_ALIASES.accepts(stored) && isUtf8(bytes)
    const aliases = isWhole ? (stored as readonly Alias[]) : aliasesIn(text)
    for (const alias of aliases) this.#aliases.set(alias.name, alias)
    if (isWhole || this.#isUnreadable) return
    this.#damaged = `${file}.${Date.now()}.damaged`
    const got = `${aliases.length} that can be read, and go on`
    const hint = `It stays as it is, and the first change of an alias renames it to ${path.basename(this.#damaged)}`
    onError(new FileError({ where: file, what: 'not a list of aliases', got, hint }))
  }

  #write(): Promise<void> {
    return this.#turns.take(async () => {
      if (this.#damaged !== undefined) await rename(this.aliasFile, this.#damaged)
      this.#damaged = undefined
      await writePrivate(this.aliasFile, JSON.stringify([...this.#aliases.values()]))
    })
  }
}

const IS_ALIAS = kind('an alias', (value) => {
  return isObject(value) && NAME.accepts(value.name) && NAME.accepts(value.model) && Number.isFinite(value.created)
})
const IS_ALIASES = listOf(IS_ALIAS)

/** The aliases that are whole in a damaged file. Bytes that are no text make no name. */
function aliasesIn(text: string): Alias[] {
  const objects = text.match(/\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}/g) ?? []
  return objects.flatMap((object) => {
    const value = jsonIn(object)
    return IS_ALIAS.accepts(value) && !object.includes('\uFFFD') ? [value as Alias] : []
  })
}

const wireAlias = ({ name, model, created }: Alias) => ({ id: name, object: 'alias', name, model, created_at: created })

function conflict(message: string): HttpError {
  return new HttpError(409, message, { code: 'conflict' })
}
