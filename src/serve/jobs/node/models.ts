// The models that jobs made, which the server knows by name from then on, and aliases, which are further names.

import path from 'node:path'
import { RUN_FILES, removeWritten } from '../../../api/node/parts.js'
import type { AdapterRegistry, Tuned, TunedModels } from '../../adapters.js'
import { seconds } from '../../adapters.js'
import { HttpError } from '../../http.js'
import { type Caller, SERVER } from '../../keys.js'
import type { Call } from '../../route.js'
import { isUnusable, mayUse, type Store } from '../../store/store.js'
import type { Row } from '../../store/tables.js'
import { ENDED } from '../job.js'
import { begin, end } from './files.js'
import { jobOf } from './job-rows.js'

export class Models implements TunedModels {
  #registry: AdapterRegistry | undefined

  constructor(private readonly store: Store) {}

  attach(registry: AdapterRegistry): void {
    this.#registry = registry
  }

  /** Without its store, a server still answers for other models than those of jobs. */
  find(names: readonly string[], caller: Caller): Promise<ReadonlyMap<string, Tuned>> {
    return this.#find(names, caller).catch((error) => {
      if (isUnusable(error) && !names.some((name) => name.startsWith('ft:'))) return new Map()
      throw error
    })
  }

  async #find(names: readonly string[], caller: Caller): Promise<ReadonlyMap<string, Tuned>> {
    if (names.length === 0) return new Map()
    const { rows } = this.store
    const aliases = await rows.selectFrom('aliases').selectAll().where('name', 'in', names).execute()
    const targets = aliases.map(({ model }) => model)
    const made = await rows
      .selectFrom('models')
      .selectAll()
      .where('name', 'in', [...names, ...targets])
      .execute()
    const source = (name: string, asking: Caller) => {
      const model = made.find((row) => row.name === name)
      return model === undefined || model.is_deleted || !mayUse(model, asking) ? undefined : this.#folderOf(model)
    }
    return new Map<string, Tuned>([
      ...made.map(({ name }) => [name, { target: name, source: source(name, caller), isMade: true }] as const),
      // All callers may use an alias.
      ...aliases.map(({ name, model }) => {
        const isMade = made.some((row) => row.name === model)
        return [name, { target: model, source: source(model, SERVER), isMade, isAlias: true }] as const
      }),
    ])
  }

  #folderOf({ job, place }: Pick<Row<'models'>, 'job' | 'place'>): string {
    return path.join(this.store.folder, 'jobs', job, place)
  }

  list(caller: Caller) {
    return this.#list(caller).catch((error) => {
      if (isUnusable(error)) return []
      throw error
    })
  }

  async #list(caller: Caller) {
    const made = this.store.rows.selectFrom('models').select(['name', 'created_at']).where('is_deleted', '=', 0)
    const own = caller.isAdmin ? made : made.where('owner', '=', caller.name)
    const models = await own.orderBy('seq').execute()
    return [...models, ...(await this.#aliases())].map(({ name, created_at: created }) => ({ name, created }))
  }

  #aliases(): Promise<Row<'aliases'>[]> {
    return this.store.rows.selectFrom('aliases').selectAll().orderBy('created_at').orderBy('name').execute()
  }

  async remove({ id: name, caller }: Call): Promise<object> {
    const model = await this.store.write(async (rows) => {
      const [found] = await rows.selectFrom('models').selectAll().where('name', '=', name).execute()
      if (found === undefined || found.is_deleted || !mayUse(found, caller)) {
        throw new HttpError(404, `There is no model ${name.slice(0, 300)} that a job of yours made`, {
          param: 'model',
          code: 'model_not_found',
        })
      }
      const [alias] = await rows.selectFrom('aliases').select('name').where('model', '=', name).execute()
      // Whoever may not make aliases learns only that there is one.
      if (alias !== undefined) throw conflict(`An alias${caller.isAdmin ? ` (${alias.name})` : ''} names this model`)
      const unended = await rows.selectFrom('jobs').select('record').where('status', 'not in', ENDED).execute()
      const folder = this.#folderOf(found)
      if (unended.some((row) => jobOf(row).start === folder)) throw conflict('A job trains this model further')
      await rows.updateTable('models').set({ is_deleted: 1 }).where('name', '=', name).execute()
      await begin(rows, placeOf(found))
      return found
    })
    this.#registry?.forget(name)
    await removeWritten(this.#folderOf(model), (file) => RUN_FILES.includes(file))
    await this.store.write((rows) => end(rows, placeOf(model)))
    return { id: name, object: 'model', deleted: true }
  }

  async aliases(): Promise<readonly object[]> {
    return (await this.#aliases()).map(wireAlias)
  }

  /** From now on requests for the alias get this model; those that have begun keep theirs. */
  async setAlias({ fields }: Call): Promise<object> {
    const { name, model: asked } = fields as { name: string; model: string }
    return this.publish(name, asked)
  }

  /** @throws HttpError if the name is that of a model */
  async requireName(name: string): Promise<void> {
    const isAlias = (await this.find([name], SERVER)).get(name)?.isAlias
    if (!isAlias && !(await this.#registry!.isFree(name))) throw conflict(`${name} is the name of a model`)
  }

  async publish(name: string, asked: string): Promise<object> {
    await this.requireName(name)
    const model = (await this.find([asked], SERVER)).get(asked)?.target ?? asked
    // It is loaded before requests ask for it.
    const { end } = await this.#registry!.choose({ model }, SERVER)
    end()
    await this.requireName(name)
    const alias = { name, model, created_at: seconds() }
    await this.store.write(async (rows) => {
      const [deleted] = await rows
        .selectFrom('models')
        .select('name')
        .where('name', '=', model)
        .where('is_deleted', '=', 1)
        .execute()
      if (deleted !== undefined) throw conflict(`${model} was deleted`)
      const added = rows.insertInto('aliases').values(alias)
      await added.onConflict((conflict) => conflict.column('name').doUpdateSet(alias)).execute()
    })
    return wireAlias(alias)
  }

  async removeAlias({ id: name }: Call): Promise<object> {
    const { numDeletedRows } = await this.store.write((rows) =>
      rows.deleteFrom('aliases').where('name', '=', name).executeTakeFirst(),
    )
    if (numDeletedRows === 0n) throw new HttpError(404, `There is no alias ${name.slice(0, 300)}`)
    return { id: name, object: 'alias', deleted: true }
  }
}

const placeOf = ({ job, place }: Row<'models'>) => `jobs/${job}/${place}`

const wireAlias = ({ name, model, created_at }: Row<'aliases'>) => {
  return { id: name, object: 'alias', name, model, created_at }
}

function conflict(message: string): HttpError {
  return new HttpError(409, message, { code: 'conflict' })
}
