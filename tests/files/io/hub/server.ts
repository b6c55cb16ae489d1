// A server with the Hub's routes for files in memory, and a second server of another origin for large files. It records
// requests, and fails on demand.

import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/** A recorded request. */
export interface Seen {
  origin: 'hub' | 'storage'
  path: string
  authorization: string | undefined
  range: string | undefined
}

/** A repository: files by path. Files in `lfs` are on the server for large files. */
export interface Repository {
  files: Record<string, Uint8Array>
  lfs?: readonly string[]
  /** Only holders of a token may read it; `terms` to be accepted by the token's account. */
  access?: 'private' | 'gated'
  /** Branches and tags; default: main at the only commit. */
  refs?: Record<string, string>
  commit?: string
}

/** A fault in the answer for a file. It happens `times` times, by default always. */
export interface Fault {
  status?: number
  /** Bytes of the answer after which the connection breaks, or falls silent. */
  breakAfter?: number | (() => number)
  stallAfter?: number
  /** The Retry-After header of an answer with `status`. Default 0. */
  retryAfter?: string
  /** Bytes to send instead of the content. */
  content?: Uint8Array
  /** True to ignore ranges and send the whole file. */
  ignoresRange?: boolean
  /** Pause after each piece of 64 kB, or of `pieceBytes`. */
  pauseMs?: number
  pieceBytes?: number
  times?: number
}

export const TOKEN = 'hf_right'
/** A token whose account has not accepted the terms. */
export const STRANGER = 'hf_stranger'

const sha = (kind: string, bytes: Uint8Array | string) => createHash(kind).update(bytes).digest('hex')
const digests = new WeakMap<Uint8Array, string>()
export function sha256(bytes: Uint8Array): string {
  const known = digests.get(bytes) ?? sha('sha256', bytes)
  digests.set(bytes, known)
  return known
}
export const gitSha1 = (bytes: Uint8Array): string => {
  return createHash('sha1').update(`blob ${bytes.byteLength}\0`).update(bytes).digest('hex')
}
const pointer = (bytes: Uint8Array) =>
  new TextEncoder().encode(
    `version https://git-lfs.github.com/spec/v1\noid sha256:${sha256(bytes)}\nsize ${bytes.byteLength}\n`,
  )

export class FakeHub {
  readonly repositories = new Map<string, Repository>()
  /** Faults of files, by path in any repository, and faults of the API, by the beginning of its path. */
  readonly faults = new Map<string, Fault>()
  readonly seen: Seen[] = []
  /** Entries on a page of a tree. */
  pageSize = 1000
  /** A wrong Link header for trees. */
  link: string | undefined
  /** Entries that a hostile server adds to each tree. */
  extraEntries: unknown[] = []
  /** The time before each answer. */
  delayMs = 0
  /** How many requests waited for their answers at the same time, at most. */
  mostAtOnce = 0
  #waiting = 0
  endpoint = ''
  storage = ''
  readonly #servers: Server[] = []

  async start(): Promise<this> {
    this.endpoint = await this.#listen((request, response) => this.#hub(request, response))
    this.storage = await this.#listen((request, response) => this.#storage(request, response))
    return this
  }

  async stop(): Promise<void> {
    for (const server of this.#servers) {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    }
  }

  /** Paths of the files that were asked for, without those of the API. */
  get loaded(): string[] {
    return this.seen
      .filter(({ origin, path }) => origin === 'hub' && path.includes('/resolve/'))
      .map(({ path }) => path.replace(/^.*\/resolve\/[^/]+\//, ''))
  }

  async #listen(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<string> {
    const server = createServer((request, response) => {
      // A page of another origin reads these.
      response.setHeader('access-control-allow-origin', '*')
      response.setHeader('access-control-allow-headers', '*, authorization')
      response.setHeader('access-control-expose-headers', '*')
      this.mostAtOnce = Math.max(this.mostAtOnce, ++this.#waiting)
      response.on('close', () => this.#waiting--)
      if (request.method === 'OPTIONS') response.writeHead(204).end()
      else if (this.delayMs === 0) answer(request, response)
      else setTimeout(() => answer(request, response), this.delayMs)
    })
    this.#servers.push(server)
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  #note(origin: Seen['origin'], request: IncomingMessage): void {
    const { authorization, range } = request.headers
    this.seen.push({ origin, path: request.url!, authorization, range })
  }

  #hub(request: IncomingMessage, response: ServerResponse): void {
    this.#note('hub', request)
    const url = new URL(request.url!, this.endpoint)
    const refuse = (status: number, code: string, message: string) =>
      response
        .writeHead(status, { 'x-error-code': code, 'x-error-message': message })
        .end(JSON.stringify({ error: message }))
    const api = /^\/api\/models\/(.+?)\/(revision|tree)\/([^/]+)\/?$/.exec(url.pathname)
    const cached = /^\/api\/resolve-cache\/models\/(.+?)\/([0-9a-f]{40})\/(.+)$/.exec(url.pathname)
    const file = /^\/(.+?)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname)
    const [, id, revision] = api ? [api[0], api[1], api[3]] : (cached ?? file ?? [])
    const repository = this.repositories.get(id ?? '')
    const token = request.headers.authorization?.replace('Bearer ', '')
    if (token !== undefined && ![TOKEN, STRANGER].includes(token)) {
      return void refuse(401, '', 'Invalid credentials in Authorization header')
    }
    if (repository === undefined || (repository.access === 'private' && token !== TOKEN)) {
      return void refuse(token === undefined ? 401 : 404, 'RepoNotFound', 'Repository not found')
    }
    if (repository.access === 'gated' && api === null && token !== TOKEN) {
      return void refuse(token === undefined ? 401 : 403, 'GatedRepo', `Access to model ${id} is restricted.`)
    }
    const commit = this.commitOf(id!, decodeURIComponent(revision!))
    if (commit === undefined) return void refuse(404, 'RevisionNotFound', 'Invalid rev id')
    if (api !== null) {
      const fault = this.#fault(api[2])
      if (fault?.status !== undefined) return void response.writeHead(fault.status).end()
      if (fault?.stallAfter !== undefined) return void response.writeHead(200).write(' ')
      if (api[2] === 'revision') return void response.end(JSON.stringify({ id, sha: commit }))
      return void this.#tree(url, response, repository)
    }
    const path = decodeURIComponent((cached ?? file)![3])
    const content = repository.files[path]
    if (content === undefined) return void refuse(404, 'EntryNotFound', 'Entry not found')
    const isLarge = repository.lfs?.includes(path) ?? false
    response.setHeader('x-repo-commit', commit)
    if (isLarge) {
      const digest = sha256(content)
      const linked = { 'x-linked-etag': `"${digest}"`, 'x-linked-size': String(content.byteLength) }
      const location = `${this.storage}/${digest}/${encodeURIComponent(path)}?signature=s`
      return void response.writeHead(302, { location, etag: `"${gitSha1(pointer(content))}"`, ...linked }).end()
    }
    if (cached === null) {
      const location = `/api/resolve-cache/models/${id}/${commit}/${encodeURIComponent(path)}?etag=x`
      return void response.writeHead(307, { location, etag: `"${gitSha1(content)}"` }).end()
    }
    this.#send(request, response, path, content, `"${gitSha1(content)}"`)
  }

  #storage(request: IncomingMessage, response: ServerResponse): void {
    this.#note('storage', request)
    const [, digest, name] = new URL(request.url!, this.storage).pathname.split('/')
    const path = decodeURIComponent(name)
    const all = [...this.repositories.values()].flatMap(({ files }) => Object.values(files))
    const content = all.find((bytes) => sha256(bytes) === digest)
    if (content === undefined) return void response.writeHead(403).end('no signature')
    this.#send(request, response, path, content, `"${digest}"`)
  }

  /** The commit of a revision; undefined when there is none. */
  commitOf(id: string, revision: string): string | undefined {
    const { refs, files, commit = sha('sha1', id + Object.keys(files).join()) } = this.repositories.get(id)!
    const known = refs ?? { main: commit }
    return Object.values(known).includes(revision) ? revision : known[revision]
  }

  #tree(url: URL, response: ServerResponse, { files, lfs = [] }: Repository): void {
    const entries: unknown[] = Object.entries(files).map(([path, content]) => {
      const large = lfs.includes(path)
      const oid = gitSha1(large ? pointer(content) : content)
      const stored = { oid: sha256(content), size: content.byteLength, pointerSize: pointer(content).byteLength }
      return { type: 'file', oid, size: content.byteLength, path, ...(large && { lfs: stored }) }
    })
    const folders = new Set(
      Object.keys(files).flatMap((path) => (path.includes('/') ? [path.slice(0, path.lastIndexOf('/'))] : [])),
    )
    for (const path of folders) entries.push({ type: 'directory', oid: '0'.repeat(40), size: 0, path })
    entries.push(...this.extraEntries)
    const from = Number(url.searchParams.get('cursor') ?? 0)
    if (from + this.pageSize < entries.length) {
      // The Hub names itself by its public address, also behind a mirror.
      url.searchParams.set('cursor', String(from + this.pageSize))
      response.setHeader('link', `<${url.href}>; rel="next"`)
    }
    if (this.link !== undefined) response.setHeader('link', this.link)
    response.end(JSON.stringify(entries.slice(from, from + this.pageSize)))
  }

  #fault(name: string): Fault | undefined {
    const fault = this.faults.get(name)
    if (fault?.times === undefined) return fault
    if (fault.times <= 0) return undefined
    fault.times--
    return fault
  }

  async #send(
    request: IncomingMessage,
    response: ServerResponse,
    path: string,
    whole: Uint8Array,
    etag: string,
  ): Promise<void> {
    const fault = this.#fault(path)
    if (fault?.status !== undefined)
      return void response.writeHead(fault.status, { 'retry-after': fault.retryAfter ?? '0' }).end()
    const content = fault?.content ?? whole
    const range = fault?.ignoresRange ? null : /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '')
    const [first, last] = range
      ? [Number(range[1]), range[2] === '' ? content.length - 1 : Math.min(Number(range[2]), content.length - 1)]
      : [0, content.length - 1]
    if (range !== null && first >= content.length) {
      return void response.writeHead(416, { 'content-range': `bytes */${content.length}` }).end()
    }
    const part = content.subarray(first, last + 1)
    const headers = { 'content-length': part.length, 'accept-ranges': 'bytes', etag }
    response.writeHead(range ? 206 : 200, {
      ...headers,
      ...(range && { 'content-range': `bytes ${first}-${last}/${content.length}` }),
    })
    if (request.method === 'HEAD') return void response.end()
    const { breakAfter: broken, stallAfter, pauseMs, pieceBytes = 1 << 16 } = fault ?? {}
    const breakAfter = typeof broken === 'function' ? broken() : broken
    const cut = breakAfter ?? stallAfter
    if (cut !== undefined) {
      response.write(part.subarray(0, cut), () => {
        if (breakAfter !== undefined) setTimeout(() => response.destroy(), 100)
      })
      return
    }
    if (pauseMs === undefined) return void response.end(part)
    for (let offset = 0; offset < part.length && !response.destroyed; offset += pieceBytes) {
      response.write(part.subarray(offset, offset + pieceBytes))
      await new Promise((resolve) => setTimeout(resolve, pauseMs))
    }
    response.end()
  }
}
