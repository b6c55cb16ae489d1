// Records with an owner, each a JSON file in a folder of its own, which may hold other files: FOLDER/ID/record.json.
// They are in memory too, so only one process at a time may use the folder.

import { randomBytes } from 'node:crypto'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { codeOf, fileError, removeWritten, WholeOutput } from '../../../api/node/parts.js'
import { FileError } from '../../../core/base/errors.js'
import { isObject, jsonIn, type Kind, kind, ranged, STRING } from '../../../core/base/options.js'
import { Turns } from '../../../core/base/turns.js'
import { seconds } from '../../adapters.js'
import { HttpError } from '../../http.js'
import type { Caller } from '../../keys.js'
import { type EntryKind, isUnfinished, KINDS, type KindName, namesOf } from './kinds.js'

/** Nobody but the server's user reads what callers leave here. */
export const PRIVATE = { mode: 0o600 } as const
const PRIVATE_FOLDER = { mode: 0o700, recursive: true } as const

export interface Stored {
  readonly id: string
  /** Name of a key. */
  readonly owner: string
  readonly created_at: number
  /** When it is removed, if that is before the store's own limit. */
  readonly expires_at?: number
}

export interface StoreOptions {
  /** Seconds after which an entry is removed. Default: never. */
  readonly maxAge?: number
  /** False if another process may have the folder. Then nothing is changed in it. Default true. */
  readonly isOurs?: boolean
  /** Hears of each entry that cannot be read, and of whatever is not the server's. Both stay as they are. */
  readonly onError: (error: unknown) => void
}

export const RECORD = 'record.json'
const SECONDS = ranged('a finite number')
const orAbsent = ({ expected, accepts }: Kind) => kind(expected, (value) => value === undefined || accepts(value))
const STORED = { owner: STRING, created_at: SECONDS, expires_at: orAbsent(SECONDS) }

/** Writes a file that is whole or not there, and that nobody else may read. */
export async function writePrivate(file: string, content: string): Promise<void> {
  const output = await WholeOutput.begin(file)
  try {
    await writeFile(output.made, content, PRIVATE)
    await output.publish(async () => {})
  } finally {
    await output.close()
  }
}

export function newId(prefix: string): string {
  return prefix + randomBytes(12).toString('hex')
}

export class Store<Entry extends Stored> {
  readonly #entries = new Map<string, Entry>()
  /** Changes of one record are written in their order. */
  readonly #turns = new Turns()

  private constructor(
    private readonly folder: string,
    private readonly kind: EntryKind,
    private readonly options: StoreOptions,
  ) {}

  /** Reads all records in FOLDER/KIND, and removes entries that were never finished. */
  static async open<Entry extends Stored>(root: string, name: KindName, options: StoreOptions): Promise<Store<Entry>> {
    const folder = path.join(root, name)
    const store = new Store<Entry>(folder, KINDS[name], options)
    const { isOurs = true } = options
    if (isOurs) await mkdir(folder, PRIVATE_FOLDER)
    const entries: Entry[] = []
    for (const id of await namesOf(folder)) {
      try {
        entries.push(...(await store.#read(id, isOurs)))
      } catch (error) {
        options.onError(error)
      }
    }
    entries.sort((a, b) => a.created_at - b.created_at || (a.id < b.id ? -1 : 1))
    for (const entry of entries) store.#entries.set(entry.id, entry)
    return store
  }

  /** Returns the entry; [] if it was never finished. Only an entry that certainly was not is removed. */
  async #read(id: string, isOurs: boolean): Promise<Entry[]> {
    const place = path.join(this.folder, id)
    const file = path.join(place, RECORD)
    if (!this.kind.id.test(id)) {
      throw new FileError({
        where: place,
        what: 'not made by this server; it stays as it is',
        hint: 'Move it elsewhere',
      })
    }
    let text: string
    try {
      text = await readFile(file, 'utf8')
    } catch (error) {
      if (codeOf(error) !== 'ENOENT' || !(await isUnfinished(place, this.kind))) {
        throw fileError(file, 'cannot be read, and stays as it is', error)
      }
      if (isOurs) await this.#removeFiles(id)
      return []
    }
    const record = jsonIn(text)
    const fits = ([name, { accepts }]: [string, Kind]) => isObject(record) && accepts(record[name])
    if (isObject(record) && record.id === id && Object.entries({ ...STORED, ...this.kind.record }).every(fits)) {
      return [record as unknown as Entry]
    }
    const what = `not the record of a ${this.kind.noun}; it stays as it is`
    throw new FileError({ where: file, what, hint: 'Repair it, or remove its folder' })
  }

  #removeFiles(id: string): Promise<void> {
    return removeWritten(path.join(this.folder, id), (name) => this.kind.files.test(name))
  }

  /** Returns all entries that are not too old, the oldest first. */
  all(): Entry[] {
    return [...this.#entries.keys()].flatMap((id) => this.find(id) ?? [])
  }

  /** Removes what is too old, which otherwise goes when somebody looks for it. */
  async sweep(): Promise<void> {
    this.all()
    await this.#turns.idle
  }

  of(caller: Caller): Entry[] {
    return this.all().filter((entry) => mayUse(entry, caller))
  }

  find(id: string): Entry | undefined {
    const entry = this.#entries.get(id)
    const { maxAge = Number.POSITIVE_INFINITY, isOurs = true } = this.options
    if (entry === undefined) return undefined
    if (Math.min(entry.expires_at ?? Number.POSITIVE_INFINITY, entry.created_at + maxAge) >= seconds()) return entry
    if (isOurs) void this.remove(entry).catch(() => {})
    return undefined
  }

  /** @throws HttpError if the caller has no such entry */
  get(id: string, caller: Caller, param = 'id', status = 404): Entry {
    const entry = this.find(id)
    if (entry !== undefined && mayUse(entry, caller)) return entry
    throw new HttpError(status, `There is no ${this.kind.noun} ${id.slice(0, 100)}`, { param, code: 'not_found' })
  }

  folderOf({ id }: { readonly id: string }): string {
    return path.join(this.folder, id)
  }

  async makeFolder(id: string): Promise<string> {
    const folder = path.join(this.folder, id)
    await mkdir(folder, PRIVATE_FOLDER)
    return folder
  }

  /** Writes a file beside the record of an entry. */
  async write(id: string, file: string, content: string): Promise<void> {
    await writePrivate(path.join(await this.makeFolder(id), file), content)
  }

  /** Writes an entry, or its changes. */
  put(entry: Entry): Promise<void> {
    this.#entries.set(entry.id, entry)
    return this.#turns.take(async () => {
      // It may have been removed while this waited.
      if (this.#entries.get(entry.id) !== entry) return
      await this.write(entry.id, RECORD, JSON.stringify(entry))
    })
  }

  remove({ id }: { readonly id: string }): Promise<void> {
    this.#entries.delete(id)
    return this.#turns.take(async () => {
      // Without its record, the rest goes at the next start at the latest.
      await rm(path.join(this.folder, id, RECORD), { force: true })
      await this.#removeFiles(id)
    })
  }
}

export function mayUse({ owner }: { readonly owner: string }, { name, isAdmin }: Caller): boolean {
  return isAdmin || owner === name
}

export function birth(id: string, { name }: Caller): Stored {
  return { id, owner: name, created_at: seconds() }
}
