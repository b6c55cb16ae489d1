// The folder in which everything is kept. Only its owner can read it, and a file in it is whole or not there.
//   manifest.json, index.html
//   lists/NAME.jsonl, lists/NAME/ID.jsonl   what the provider's routes list
//   files/, weights/                        files as they were uploaded or made
//   recorded.jsonl, ledger.jsonl            answers of the old models, and what they cost
//   moved/                                  adapters

import { existsSync } from 'node:fs'
import { chmod, mkdir, readdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { type Report, reportPage } from '../../../api/report/page.js'
import { type Reservation, writeFile } from '../../../core/base/bytes.js'
import { ConfigError, FileError, FormatError } from '../../../core/base/errors.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { Turns } from '../../../core/base/turns.js'
import { withFileErrors } from '../../../files/io/node/errors.js'
import { NodeDirectory } from '../../../files/io/node/files.js'
import { emptyManifest, type Manifest } from '../manifest.js'
import type { Item, Provider } from '../provider.js'
import { providerOf } from '../providers.js'

const MANIFEST = 'manifest.json'

export class Folder {
  readonly directory: NodeDirectory
  readonly #turns = new Turns()

  private constructor(
    readonly path: string,
    public manifest: Manifest,
    private readonly lock: Reservation | undefined,
  ) {
    this.directory = new NodeDirectory(path)
  }

  /** Makes the folder if it is not there, and takes it for this process. Another process that has it is a FileError. */
  static async take(folder: string, provider?: string): Promise<Folder> {
    await withFileErrors(folder, 'cannot be made', () => mkdir(folder, { recursive: true, mode: 0o700 }))
    const isOurs = existsSync(path.join(folder, MANIFEST))
    if (!isOurs && (await readdir(folder)).some((name) => !name.startsWith('.lowrank'))) {
      throw new FileError({
        where: folder,
        what: 'the folder is not empty, and has no manifest.json',
        hint: 'Name a new one',
      })
    }
    await withFileErrors(folder, 'cannot be made private', () => chmod(folder, 0o700))
    const lock = await new NodeDirectory(folder).reserve('lowrank openai')
    try {
      const opened = new Folder(folder, isOurs ? await readManifest(folder) : emptyManifest(provider ?? ''), lock)
      if (provider !== undefined && opened.manifest.provider !== provider) {
        const what = `the folder has data of ${opened.manifest.provider}`
        throw new FileError({ where: folder, what, hint: `Name another folder for those of ${provider}` })
      }
      await opened.save({})
      return opened
    } catch (error) {
      await lock.release()
      throw error
    }
  }

  /** Takes the folder of an export while `work` goes on. */
  static async use<T>(folder: string, work: (folder: Folder) => Promise<T>): Promise<T> {
    await Folder.open(folder)
    const taken = await Folder.take(folder)
    return work(taken).finally(() => taken.close())
  }

  /** Opens a folder to read it. @throws FileError if `export` has not made it */
  static async open(folder: string): Promise<Folder> {
    if (existsSync(path.join(folder, MANIFEST))) return new Folder(folder, await readManifest(folder), undefined)
    throw new FileError({
      where: folder,
      what: 'no manifest.json',
      hint: 'Run lowrank openai export with this folder first',
    })
  }

  /** The base of the first job that was trained again. @throws ConfigError if none was */
  baseOf(): string {
    const moved = this.manifest.moved.find(({ adapter, isTaken }) => adapter !== undefined && !isTaken)
    if (moved !== undefined) return moved.base
    const hint = 'Name a base, or run lowrank openai move with this folder first'
    throw new ConfigError({ where: this.path, what: 'it has no job that was moved', hint })
  }

  async close(): Promise<void> {
    await this.lock?.release()
  }

  get provider(): Provider {
    return providerOf(this.manifest.provider)
  }

  at(place: string): string {
    return path.join(this.path, ...place.split('/'))
  }

  has(place: string): boolean {
    return existsSync(this.at(place))
  }

  async save(changes: Partial<Manifest>): Promise<void> {
    this.manifest = { ...this.manifest, ...changes }
    // In turns, so that no earlier state is written over a later one.
    await this.#turns.take(() => this.write(MANIFEST, `${JSON.stringify(this.manifest, null, 2)}\n`))
  }

  async write(place: string, content: string): Promise<void> {
    await writeFile(this.directory, place, content)
  }

  /** Flushed when it returns. */
  async append(place: string, ...lines: readonly object[]): Promise<void> {
    const text = lines.map((line) => `${JSON.stringify(line)}\n`).join('')
    await this.directory.append(place, new TextEncoder().encode(text))
  }

  /** The lines of a file, none if there is no file. A last line that a crash cut off is left out, and removed. */
  async lines(place: string): Promise<Item[]> {
    if (!this.has(place)) return []
    const text = await readFile(this.at(place), 'utf8')
    const whole = text.slice(0, text.lastIndexOf('\n') + 1)
    if (whole !== text && this.lock !== undefined) await this.write(place, whole)
    return whole.split('\n').flatMap((line, i) => {
      if (line.trim() === '') return []
      const value = jsonIn(line)
      if (isObject(value)) return [value]
      throw new FormatError({ where: `${place}, line ${i + 1}`, what: 'not a JSON object' })
    })
  }

  /** All lists, by their places. */
  async lists(): Promise<Map<string, Item[]>> {
    const names = existsSync(this.at('lists')) ? await readdir(this.at('lists'), { recursive: true }) : []
    const places = names.filter((name) => name.endsWith('.jsonl')).map((name) => `lists/${name.replaceAll('\\', '/')}`)
    return new Map(await Promise.all(places.map(async (place) => [place, await this.lines(place)] as const)))
  }

  async writePage(place: string, page: Report): Promise<void> {
    await this.write(place, reportPage(page))
  }

  async remove(place: string): Promise<void> {
    await this.directory.remove(place)
  }
}

async function readManifest(folder: string): Promise<Manifest> {
  const file = path.join(folder, MANIFEST)
  const value = jsonIn(await withFileErrors(file, 'cannot be read', () => readFile(file, 'utf8')))
  if (isObject(value) && value.version === 1) return { ...emptyManifest(''), ...value } as Manifest
  throw new FormatError({ where: file, what: 'not a manifest of lowrank openai', expected: '"version": 1' })
}
