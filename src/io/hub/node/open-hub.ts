// Opens a repository of the Hub in Node. Its files are kept in the Hub's cache, which Python shares: what is there
// opens without the Hub, and what comes can be opened by Python.

import { stat } from 'node:fs/promises'
import type { ByteSource } from '../../../base/bytes.js'
import { FileError, nearMisses } from '../../../base/errors.js'
import { openFile } from '../../node/files.js'
import type { HubSource } from '../../source.js'
import { COMMIT, fileUrl, type HubFile, listTree, resolveRevision } from '../api.js'
import { digestOf } from '../digest.js'
import { HubDirectory, hubName, type RemoteOptions } from '../directory.js'
import { type HubRequest, refusal } from '../errors.js'
import { MAX_WHOLE_BYTES, RangeSource } from '../range-source.js'
import { type HubConnection, HubError, STALL_MS } from '../request.js'
import { cachedIds, ModelCache } from './cache.js'
import { download } from './download.js'
import { type HubEnvironment, hubEnvironment, hubToken } from './environment.js'

export interface OpenHubOptions extends RemoteOptions {
  readonly variables?: Readonly<Record<string, string | undefined>> | undefined
}

/** With a copy in the cache nobody waits longer for the Hub to name its newest commit. */
const REFRESH_STALL_MS = 10_000

/** Files come when they are opened. With neither Hub nor cache: FileError. */
export async function openHub(source: HubSource, options: OpenHubOptions = {}): Promise<HubDirectory> {
  const environment = hubEnvironment(options.variables)
  const connection: HubConnection = {
    endpoint: options.endpoint ?? environment.endpoint,
    token: options.token ?? (await hubToken(options.variables)),
    signal: options.signal,
    stallMs: environment.stallMs ?? STALL_MS,
    ...options.times,
  }
  const repository = new Repository(source, connection, environment, options)
  return repository.open()
}

class Repository {
  readonly #source: HubSource
  readonly #connection: HubConnection
  readonly #environment: HubEnvironment
  readonly #options: OpenHubOptions
  readonly #cache: ModelCache
  #closed: string | undefined

  constructor(source: HubSource, connection: HubConnection, environment: HubEnvironment, options: OpenHubOptions) {
    this.#source = source
    this.#connection = connection
    this.#environment = environment
    this.#options = options
    this.#cache = new ModelCache(environment.cacheFolder, source.id, environment.avoidsLinks)
    if (environment.isOffline) this.#closed = 'HF_HUB_OFFLINE is set'
  }

  async open(): Promise<HubDirectory> {
    const commit = await this.#commit()
    const files = await this.#files(commit)
    const cached = files === undefined ? await this.#cache.cachedFiles(commit) : undefined
    if (cached?.size === 0) throw await this.#notCached(`commit ${commit}`)
    const paths = new Set((files ?? cached)!.keys())
    const open = (path: string) => this.#open(commit, path, files?.get(path))
    return new HubDirectory(this.#source, commit, { paths, open })
  }

  async #commit(): Promise<string> {
    const { revision } = this.#source
    if (COMMIT.test(revision)) return revision
    const known = await this.#cache.readRef(revision)
    if (this.#closed === undefined) {
      const { stallMs = STALL_MS } = this.#connection
      const patience = known === undefined ? stallMs : Math.min(stallMs, REFRESH_STALL_MS)
      try {
        return await resolveRevision(await this.#asked({ ...this.#connection, stallMs: patience }))
      } catch (error) {
        this.#fallBack(error, known !== undefined)
      }
    }
    if (known === undefined) throw await this.#notCached(`revision ${JSON.stringify(revision)}`)
    return known
  }

  async #files(commit: string): Promise<ReadonlyMap<string, HubFile> | undefined> {
    const known = await this.#cache.readTree(commit)
    if (known !== undefined || this.#closed !== undefined) return known
    try {
      const files = await listTree(await this.#asked(), commit)
      // A cache that cannot be written, as one of a whole institute, is still read.
      await this.#cache.writeTree(commit, files).catch(() => {})
      return files
    } catch (error) {
      this.#fallBack(error, (await this.#cache.cachedFiles(commit)).size > 0)
      return undefined
    }
  }

  /** Goes on with the cache, if there is something in it and the Hub gives nothing; throws what is wrong otherwise. */
  #fallBack(error: unknown, isCached: boolean): void {
    if (!(error instanceof HubError) || error.kind === 'absent' || !isCached) throw error
    this.#closed = error.what
    this.#options.onWarning?.(`${error.message}. The copy in the cache is used, as it was when it came`)
  }

  async #open(commit: string, path: string, file: HubFile | undefined): Promise<ByteSource> {
    const local = this.#cache.snapshot(commit, path)
    const status = await stat(local).catch(() => undefined)
    if (status?.isFile() && (file === undefined || status.size === file.byteLength)) {
      // A cache that cannot be written is still read.
      if (this.#closed === undefined) await this.#cache.writeRef(this.#source.revision, commit).catch(() => {})
      return openFile(local)
    }
    const name = hubName({ ...this.#source, path })
    if (this.#closed !== undefined || file === undefined) {
      const what = status === undefined ? 'not in the cache' : 'damaged in the cache'
      const other = (await this.#cache.commitsWith(path)).find((one) => one !== commit)
      const hint = other === undefined ? '' : `, or name an older commit that is here: hf:${this.#source.id}@${other}`
      throw new FileError({
        where: name,
        what: `${what}, and ${this.#closed}`,
        hint: `Open it once with the Hub in reach${hint}`,
      })
    }
    const asked = { ...(await this.#asked()), file: path }
    const refused = (response: Response) => refusal(response, asked)
    const url = fileUrl(this.#connection, this.#source, commit, path)
    if (this.#options.readsRanges && file.byteLength > MAX_WHOLE_BYTES) {
      return new RangeSource(this.#connection, { url, name, byteLength: file.byteLength }, refused)
    }
    await this.#load(commit, file, { url, name, refused })
    return openFile(local)
  }

  async #load(
    commit: string,
    file: HubFile,
    from: { url: string; name: string; refused: (response: Response) => FileError },
  ): Promise<void> {
    const cache = this.#cache
    const { path, byteLength, sha256, gitSha1 } = file
    const digest = sha256 ?? gitSha1
    const target = cache.blob(digest)
    await cache.prepare()
    const known = await stat(target).catch(() => undefined)
    const isNew = known?.size !== byteLength
    if (isNew) {
      const { onDownload } = this.#options
      const connection = this.#connection
      await download({ ...from, connection, byteLength, digest: digestOf(file), target, onDownload })
    }
    await cache.link(digest, commit, path, isNew)
    await cache.writeRef(this.#source.revision, commit)
  }

  async #asked(connection = this.#connection): Promise<HubRequest> {
    return { connection, source: this.#source, knownIds: await cachedIds(this.#environment.cacheFolder) }
  }

  async #notCached(what: string): Promise<FileError> {
    const { cacheFolder } = this.#environment
    const near = nearMisses(this.#source.id, await cachedIds(cacheFolder))
    return new FileError({
      where: this.#source.id,
      what: `${what} is not in the cache, and ${this.#closed}`,
      hint:
        near.length > 0
          ? `Did you mean ${near.join(' or ')}?`
          : `The cache is ${cacheFolder}; unset HF_HUB_OFFLINE to load it`,
    })
  }
}
