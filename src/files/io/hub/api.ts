// The Hub's routes that lowrank reads: the commit of a revision, the list of a commit's files, and a file's bytes. Also
// explains the Hub's refusals, because it tells strangers little about private, gated and missing repositories.

import { splitName } from '../../../core/base/bytes.js'
import { type ErrorDetails, FileError, FormatError, nearMisses } from '../../../core/base/errors.js'
import type { HubSource } from '../source.js'
import { type HubAnswer, type HubConnection, HubError, isWorthATry, pause, request } from './request.js'

export interface HubFile {
  readonly path: string
  readonly byteLength: number
  /** Git's name of the content. For a file in LFS it names the pointer to the file. */
  readonly gitSha1: string
  readonly sha256?: string
  /** The name that the Hub's own storage (Xet) gives to large content. */
  readonly xetHash?: string
}

export const COMMIT = /^[0-9a-f]{40}$/
const SHA256 = /^[0-9a-f]{64}$/

/** A page lists 1,000 files. A repository with more pages than this does not hold a model. */
const MAX_TREE_PAGES = 100
/** The largest answer for a page of the list or for a model's card. Some cards list all files again. */
const MAX_JSON_BYTES = 64 << 20
const MAX_TRIES = 3

export async function resolveRevision(asked: HubRequest): Promise<string> {
  const { connection, source } = asked
  if (COMMIT.test(source.revision)) return source.revision
  const url = `${connection.endpoint}/api/models/${source.id}/revision/${encodeURIComponent(source.revision)}`
  const { value } = await getJson(url, asked)
  const sha = (value as { sha?: unknown } | null)?.sha
  if (typeof sha === 'string' && COMMIT.test(sha)) return sha
  throw notHub(asked, url)
}

export async function listTree(asked: HubRequest, commit: string): Promise<Map<string, HubFile>> {
  const { connection, source } = asked
  const files = new Map<string, HubFile>()
  let url = `${connection.endpoint}/api/models/${source.id}/tree/${commit}?recursive=true`
  for (let page = 1; ; page++) {
    const { value, next } = await getJson(url, asked)
    if (!Array.isArray(value)) throw notHub(asked, url)
    for (const entry of value) {
      const file = parseEntry(entry, source.id)
      if (file !== undefined) files.set(file.path, file)
    }
    if (next === undefined) return files
    if (page === MAX_TREE_PAGES)
      throw new FileError({ where: source.id, what: 'too many files for a model', got: `${files.size} and more` })
    // A mirror may answer with addresses of the public Hub.
    if (!URL.canParse(next, url)) throw notHub(asked, url)
    const target = new URL(next, url)
    url = `${connection.endpoint}${target.pathname.slice(Math.max(0, target.pathname.indexOf('/api/models/')))}${target.search}`
  }
}

export function parseEntry(entry: unknown, where: string): HubFile | undefined {
  const { type, path, size, oid, lfs, xetHash } = (entry ?? {}) as Record<string, unknown>
  if (type === 'directory') return undefined
  const stored = lfs as { oid?: unknown; size?: unknown } | undefined | null
  return parseFile({ path, byteLength: stored?.size ?? size, gitSha1: oid, sha256: stored?.oid, xetHash }, where)
}

/** Reads an entry of the list of files. Digests are checked, because they become names of files. */
export function parseFile(found: Record<keyof HubFile, unknown>, where: string): HubFile {
  const { path, byteLength, gitSha1, sha256 = undefined, xetHash } = found
  const isSound =
    typeof path === 'string' &&
    Number.isSafeInteger(byteLength) &&
    (byteLength as number) >= 0 &&
    COMMIT.test(String(gitSha1)) &&
    (sha256 === undefined || SHA256.test(String(sha256)))
  if (!isSound) {
    const got = JSON.stringify(found)
    throw new FormatError({ where, what: 'the list of its files is damaged', expected: 'path, size and digest', got })
  }
  splitName(path, where)
  return {
    path,
    byteLength: byteLength as number,
    gitSha1: String(gitSha1),
    ...(sha256 !== undefined && { sha256: String(sha256) }),
    ...(SHA256.test(String(xetHash)) && { xetHash: String(xetHash) }),
  }
}

export function fileUrl({ endpoint }: HubConnection, { id }: HubSource, commit: string, path: string): string {
  return `${endpoint}/${id}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`
}

async function getJson(url: string, asked: HubRequest): Promise<{ value: unknown; next: string | undefined }> {
  for (let attempt = 1; ; attempt++) {
    let answer: HubAnswer | undefined
    try {
      answer = await request(asked.connection, url, { accept: 'application/json' })
      if (!answer.response.ok) {
        await answer.cancel()
        throw refusal(answer.response, asked)
      }
      const next = /<([^>]+)>;\s*rel="?next"?/.exec(answer.response.headers.get('link') ?? '')?.[1]
      return { value: JSON.parse(await readText(answer, url)), next }
    } catch (error) {
      if (error instanceof SyntaxError) throw notHub(asked, url, error)
      // If no connection can be made at all, fail immediately, so that cached files open without a delay.
      const mayPass = answer !== undefined && isWorthATry(error) && isPassing(answer.response.status)
      if (!mayPass || attempt === MAX_TRIES) throw error
      await pause(asked.connection, attempt, answer)
    }
  }
}

async function readText(answer: HubAnswer, url: string): Promise<string> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const chunk of answer.chunks()) {
    text += decoder.decode(chunk, { stream: true })
    if (text.length > MAX_JSON_BYTES)
      throw new FileError({ where: url, what: 'an answer without end', expected: `${MAX_JSON_BYTES} bytes at most` })
  }
  return text + decoder.decode()
}

function notHub({ connection, source }: HubRequest, url: string, cause?: unknown): FileError {
  return new FileError({
    where: source.id,
    what: `the answer of ${url} is not the Hub's`,
    hint: `Check HF_ENDPOINT (${connection.endpoint}) and the settings of a proxy`,
    cause,
  })
}

export type Digest = { readonly sha256: string } | { readonly gitSha1: string }

export function digestOf({ sha256, gitSha1 }: HubFile): Digest {
  return sha256 === undefined ? { gitSha1 } : { sha256 }
}

/** The header that git hashes before the content: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects */
export function gitHeader(byteLength: number): string {
  return `blob ${byteLength}\0`
}

export function damage(
  file: { name: string; byteLength: number; digest: Digest | undefined },
  got?: string,
): ErrorDetails {
  const { name, byteLength, digest } = file
  const named =
    digest && ('sha256' in digest ? ` with SHA-256 ${digest.sha256}` : ` with git's SHA-1 ${digest.gitSha1}`)
  return {
    where: name,
    what: 'arrived damaged, and was deleted',
    expected: `${byteLength} bytes${named ?? ''}`,
    ...(got !== undefined && { got }),
    hint: 'Try again. If it is damaged again, something between you and the server changes it',
  }
}

export interface HubRequest {
  readonly connection: HubConnection
  readonly source: HubSource
  readonly file?: string
  readonly knownIds?: readonly string[]
}

/** Statuses below 500 that may go away by themselves. */
const PASSING = [408, 425, 429]

export function isPassing(status: number): boolean {
  return status >= 500 || PASSING.includes(status)
}

export function refusal(response: Response, asked: HubRequest): HubError {
  const { connection, source, file } = asked
  const { id, revision } = source
  const where = file === undefined ? id : `${id}/${file}`
  const { status } = response
  const code = response.headers.get('x-error-code')
  const message = response.headers.get('x-error-message') ?? undefined
  const hasToken = connection.token !== undefined
  const page = `${connection.endpoint}/${id}`
  const wrong = (kind: HubError['kind'], details: Omit<ErrorDetails, 'where'>) =>
    new HubError(kind, { where, ...details })

  if (isPassing(status)) {
    const what = status === 429 ? 'the Hub asks for fewer requests' : 'the Hub fails for now'
    const hint = status === 429 && !hasToken ? 'Wait, or set HF_TOKEN: more are allowed then' : 'Try again later'
    return wrong('unreachable', { what, got: String(status), hint })
  }
  if (code === 'GatedRepo' || (status === 403 && hasToken === false)) {
    return wrong('access', {
      what: hasToken
        ? 'a gated model, which the account of the token may not read'
        : 'a gated model: its owner asks to accept terms',
      hint: hasToken
        ? `Accept the terms at ${page} with the token's account, and wait until its owner agrees if that is asked`
        : `Accept the terms at ${page}, make a token at ${connection.endpoint}/settings/tokens, and set HF_TOKEN to it`,
    })
  }
  if (code === 'RevisionNotFound') {
    return wrong('absent', {
      what: `no revision ${JSON.stringify(revision)}`,
      hint: `The branches and tags are at ${page}/tree/main`,
    })
  }
  if (code === 'EntryNotFound')
    return wrong('absent', {
      what: 'no such file in the repository',
      hint: `The files are at ${page}/tree/${revision}`,
    })
  if (status === 401 && hasToken && code !== 'RepoNotFound') {
    return wrong('access', {
      what: 'the token is not valid',
      ...(message && { got: message }),
      hint: 'Set HF_TOKEN to a token that is, or unset it',
    })
  }
  if (status === 404 || status === 401) return wrong('access', unknownId(asked, page))
  return wrong('access', {
    what: 'the Hub refuses',
    expected: '200',
    got: message === undefined ? String(status) : `${status}: ${message}`,
  })
}

function unknownId(
  { connection, source: { id }, knownIds = [] }: HubRequest,
  page: string,
): Omit<ErrorDetails, 'where'> {
  const near = nearMisses(id, knownIds)
  const meant = near.length > 0 ? `Did you mean ${near.join(' or ')}? ` : ''
  const access =
    connection.token === undefined ? 'a private one needs HF_TOKEN' : `see ${page} with the token's account`
  return { what: 'no such model on the Hub, or a private one', hint: `${meant}Check the id; ${access}` }
}
