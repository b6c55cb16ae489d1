// Carries out the plan of an export. It sends nothing but GET. What cannot be read is named in the manifest.

import { createHash } from 'node:crypto'
import { closingOnError } from '../../../core/base/bytes.js'
import { LowrankError } from '../../../core/base/errors.js'
import { isObject } from '../../../core/base/options.js'
import type { ToolProgress } from '../../../core/base/progress.js'
import { exportPage, type FileEntry, type Missing, meaningOf, type Seen } from '../manifest.js'
import { type Fetch, placeOf, planExport } from '../plan.js'
import type { Connection, Environment, Item, Provider } from '../provider.js'
import { ask, inPool, Refusal } from './client.js'
import { Folder } from './folder.js'
import { unpackAdapter } from './unpack.js'

export interface ExportOptions {
  /** The new or earlier folder. */
  readonly out: string
  readonly provider: Provider
  /** Where the key and the address are. Default: the process's environment. */
  readonly environment?: Environment | undefined
  readonly signal?: AbortSignal | undefined
  readonly on?: { progress?(event: ToolProgress): void } | undefined
}

const PAGE = 100

/**
 * Takes home what the provider keeps for the owner of a key: jobs, files, stored chats and what else the provider's
 * table of routes lists. Called again with the same folder, it fetches what is new or was missing. Nothing that the
 * folder has is ever removed.
 *
 * @throws ConfigError without a key; FileError for a folder that is not one of an export, or that is in use
 */
export async function exportAll({ out, provider, environment = process.env, signal, on }: ExportOptions) {
  const connection = provider.connect(environment)
  const folder = await Folder.take(out, provider.name)
  try {
    const run = new Run(folder, connection, signal)
    const lists: Map<string, readonly Item[]> = await folder.lists()
    const whole = new Set([...lists.keys(), ...Object.keys(folder.manifest.files)].filter((place) => folder.has(place)))
    const tried = new Set<string>()
    for (let done = 0; ; ) {
      const plan = planExport(provider, { lists, whole, tried })
      if (plan.length === 0) break
      await inPool(plan, async (fetch) => {
        tried.add(fetch.to)
        if (fetch.kind === 'file') await run.file(fetch)
        else lists.set(fetch.to, await run.list(fetch, lists.get(fetch.to) ?? []))
        on?.progress?.({ done: ++done, total: tried.size, name: fetch.path })
      })
    }
    await run.unpack()
    const counts = provider.routes.map((route) => {
      const places = [...lists].filter(
        ([place]) => place === placeOf(route) || place.startsWith(`lists/${route.name}/`),
      )
      return [route.name, places.reduce((sum, [, items]) => sum + items.length, 0)] as const
    })
    await folder.save({ lists: Object.fromEntries(counts), missing: run.missing, seen: run.seen })
    await folder.writePage('index.html', exportPage(folder.manifest, provider.routes))
    return folder.manifest
  } finally {
    await folder.close()
  }
}

class Run {
  missing: readonly Missing[] = []
  seen: readonly Seen[]

  constructor(
    private readonly folder: Folder,
    private readonly connection: Connection,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.seen = folder.manifest.seen
  }

  /** Reads all pages. A run that was stopped left its pages in a file beside, and this one goes on from there. */
  async list(
    { route, path, to }: Extract<Fetch, { kind: 'list' }>,
    earlier: readonly Item[],
  ): Promise<readonly Item[]> {
    const unfinished = `${to}.part`
    const items = await this.folder.lines(unfinished)
    try {
      for (;;) {
        const after = items.at(-1)?.id
        const query = route.isWhole
          ? ''
          : `?limit=${PAGE}${after === undefined ? '' : `&after=${encodeURIComponent(after)}`}`
        const page = await ask(this.connection, path + query, (answer) => this.#page(answer), { signal: this.signal })
        items.push(...page.data)
        if (page.data.length > 0) await this.folder.append(unfinished, ...page.data)
        if (route.isWhole || !page.has_more || page.data.length === 0) break
      }
    } catch (error) {
      // What an earlier run has read, perhaps with the key of another project, is not missing.
      this.#miss(error, path, 'list', this.folder.has(to))
      return earlier
    }
    const ids = new Set(items.map(({ id }) => id))
    const kept = earlier.filter(({ id }) => id !== undefined && !ids.has(id))
    const all = [...items, ...kept]
    await this.folder.write(to, all.map((item) => `${JSON.stringify(item)}\n`).join(''))
    await this.folder.remove(unfinished)
    return all
  }

  async #page(answer: Response): Promise<{ data: Item[]; has_more: boolean }> {
    const page: unknown = await answer.json()
    this.#look(answer)
    const data = isObject(page) ? page.data : page
    // An answer of another form would otherwise look like an empty list.
    if (!Array.isArray(data)) throw new Refusal(answer.url, answer.status, 'the answer is not a list', undefined)
    return { data: data.filter(isObject), has_more: isObject(page) && page.has_more === true }
  }

  #look({ headers }: Response): void {
    const [organization, project] = ['openai-organization', 'openai-project'].map(
      (name) => headers.get(name) ?? 'unknown',
    )
    const { url } = this.connection
    const others = this.seen.filter((seen) => `${seen.organization} ${seen.project}` !== `${organization} ${project}`)
    this.seen = [...others, { url, organization, project, at: new Date().toISOString() }]
  }

  /** Writes a file that has its whole length, or none. */
  async file({ path, to, bytes, name, purpose }: Extract<Fetch, { kind: 'file' }>): Promise<void> {
    try {
      const entry = await ask(this.connection, path, (answer) => this.#save(answer, to, bytes), { signal: this.signal })
      const files = { ...this.folder.manifest.files, [to]: { ...entry, name, purpose } }
      await this.folder.save({ files })
    } catch (error) {
      this.#miss(error, path, 'file')
    }
  }

  async #save(
    answer: Response,
    to: string,
    expected: number | undefined,
  ): Promise<Pick<FileEntry, 'bytes' | 'sha256'>> {
    const sink = await this.folder.directory.create(to)
    return closingOnError({ close: () => sink.abort() }, async () => {
      const hash = createHash('sha256')
      let bytes = 0
      for await (const chunk of answer.body ?? []) {
        hash.update(chunk)
        bytes += chunk.length
        await sink.write(chunk)
      }
      if (expected !== undefined && bytes !== expected) throw new Error(`${bytes} bytes instead of ${expected}`)
      await sink.commit()
      return { bytes, sha256: hash.digest('hex') }
    })
  }

  /** Unpacks adapters, also those of an earlier run that could not. */
  async unpack(): Promise<void> {
    const archives = Object.keys(this.folder.manifest.files).filter((place) => place.startsWith('weights/'))
    for (const from of archives) {
      const to = from.replace(/\.tar\.zst$/, '')
      if (this.folder.has(`${to}/adapter_config.json`)) continue
      const miss = (why: string) => this.#add(from, 200, `the archive is here, but its adapter is not: ${why}`)
      try {
        const names = await unpackAdapter(this.folder, from, to)
        if (!names.includes('adapter_config.json')) miss('it has none, so that it may be a whole model')
      } catch (error) {
        if (!(error instanceof LowrankError)) throw error
        miss(error.message)
      }
    }
  }

  #miss(error: unknown, path: string, kind: 'list' | 'file', isThere = false): void {
    if (!(error instanceof Refusal)) throw error
    if (!isThere) this.#add(path, error.status, `${meaningOf(error.status, kind)} (${error.got})`)
  }

  #add(path: string, status: number, what: string): void {
    this.missing = [...this.missing, { path, status, what }]
  }
}
