// A folder on a web server. Servers do not list their files, so we ask for the names that models and adapters have.

import {
  type ByteSource,
  concatBytes,
  type Directory,
  MemorySource,
  ReadOnlyDirectory,
  splitName,
} from '../../core/base/bytes.js'
import { FileError } from '../../core/base/errors.js'
import type { ResponseLike } from '../../core/base/globals.js'
import { isPassing } from './hub/api.js'
import { versionOf } from './hub/range-source.js'
import { type HubConnection, HubError, isUnreachable, request, shown } from './hub/request.js'

export interface UrlFile {
  readonly url: string
  readonly byteLength: number
  readonly version: string | undefined
  readonly hasRanges: boolean
}

export type OpenUrlFile = (file: UrlFile, isInPlace?: boolean) => Promise<ByteSource>

const KNOWN_FILES = [
  ...'adapter_config.json adapter_model.bin adapter_model.safetensors chat_template.jinja config.json'.split(' '),
  ...'generation_config.json model.onnx model.safetensors model.safetensors.index.json'.split(' '),
  ...'special_tokens_map.json tokenizer.json tokenizer_config.json'.split(' '),
]
/** Files that show that there is a folder onnx/. */
const GRAPHS = ['model.onnx', 'model_fp16.onnx', 'model_quantized.onnx', 'model_q4.onnx']
/** Statuses for missing files. Some storage answers 403 if you may not list its files. */
const ABSENT = [403, 404, 410]

/** `page`: a page of HTML in place of the file, which the server does not have. */
type Answer = UrlFile | MemorySource | 'absent' | 'page'

export function urlConnection(url: string, rest: Omit<HubConnection, 'endpoint' | 'token'>): HubConnection {
  return { ...rest, endpoint: new URL(url).origin }
}

export function urlRefusal(url: string, { status }: ResponseLike): HubError {
  const kind = isPassing(status) ? 'unreachable' : ABSENT.includes(status) ? 'absent' : 'access'
  const what = kind === 'absent' ? 'no such file on the server' : 'the server answered with an error'
  return new HubError(kind, { where: shown(url), what, expected: '200 or 206', got: String(status) })
}

export class UrlDirectory extends ReadOnlyDirectory implements Directory {
  protected override readonly refusal = { what: 'nothing is written to a URL', hint: 'Write to a folder' }
  /** Without the query, which may hold a signature: the name is written into messages and adapters. */
  readonly name: string
  readonly #asked = new Map<string, Promise<Answer>>()

  constructor(
    readonly url: string,
    private readonly connection: HubConnection,
    private readonly openFile: OpenUrlFile,
  ) {
    super()
    this.name = shown(url)
  }

  at(url: string): UrlDirectory {
    return new UrlDirectory(url, this.connection, this.openFile)
  }

  async list(): Promise<string[]> {
    const found = await Promise.all(KNOWN_FILES.map(async (name) => ((await this.has(name)) ? [name] : [])))
    return found.flat()
  }

  async folders(): Promise<string[]> {
    const has = await Promise.all(GRAPHS.map((file) => this.has(`onnx/${file}`)))
    return has.includes(true) ? ['onnx'] : []
  }

  async has(path: string): Promise<boolean> {
    try {
      return typeof (await this.#ask(path)) !== 'string'
    } catch (error) {
      if (!this.connection.hidesRedirects || !isUnreachable(error)) throw error
      // Many hosts send no CORS headers for a missing file, and then a page cannot tell it from a host that is down. If
      // the host has sent another file of this folder, the file is missing.
      const answers = await Promise.allSettled(this.#asked.values())
      if (answers.some((answer) => answer.status === 'fulfilled' && typeof answer.value !== 'string')) return false
      throw error
    }
  }

  async open(path: string, isInPlace?: boolean): Promise<ByteSource> {
    const found = await this.#ask(path)
    const where = shown(this.#url(path))
    if (found === 'absent') throw new FileError({ where, what: 'no such file on the server' })
    if (found === 'page') {
      throw new FileError({
        where,
        what: 'no such file: the server answers with a page of HTML',
        hint: 'Put the file there. Development servers and many hosts send index.html for files that they do not have',
      })
    }
    return found instanceof MemorySource ? found : this.openFile(found, isInPlace)
  }

  #url(path: string): URL {
    const url = new URL(this.url)
    if (!url.pathname.endsWith('/')) url.pathname += '/'
    url.pathname += splitName(path, this.name).map(encodeURIComponent).join('/')
    return url
  }

  #ask(path: string): Promise<Answer> {
    const { href } = this.#url(path)
    const known = this.#asked.get(href)
    if (known !== undefined) return known
    const asking = ask(href, this.connection)
    this.#asked.set(href, asking)
    asking.catch(() => this.#asked.delete(href))
    return asking
  }
}

function isHtml(start: Uint8Array | undefined): boolean {
  return /^\s*<(!doctype html|html)\b/i.test(new TextDecoder().decode(start?.subarray(0, 32)))
}

/**
 * Asks for a file. It is read at once if the server does not tell its length, or if it belongs to an extension.
 */
async function ask(url: string, connection: HubConnection): Promise<Answer> {
  // If a page asks for a range of an extension's file, Chromium answers with it as if it were the whole file.
  const isRemote = /^https?:/i.test(url)
  // Enough bytes to recognize a page of HTML.
  let answer = await request(connection, url, isRemote ? { range: 'bytes=0-31' } : {})
  if (answer.response.status === 206 && !answer.response.headers.has('content-range')) {
    // A page may not be allowed to see this header of another origin, but it can ask for the whole length.
    await answer.cancel()
    answer = await request(connection, url)
  }
  const { status, headers, ok } = answer.response
  const range = headers.get('content-range') ?? ''
  // An empty file has no first byte, so the range is refused.
  if (status === 416 && /\*\/0$/.test(range)) {
    await answer.cancel()
    return new MemorySource(new Uint8Array(), shown(url))
  }
  const text = status === 206 ? /\/(\d+)$/.exec(range)?.[1] : (headers.get('content-length') ?? undefined)
  const isEncoded = headers.get('content-encoding') !== null
  const version = versionOf(answer.response)
  const isPage = ok && /^\s*text\/html\b/i.test(headers.get('content-type') ?? '')
  if (ok && status === 200 && (text === undefined || isEncoded || !isRemote)) {
    const parts: Uint8Array[] = []
    for await (const chunk of answer.chunks()) parts.push(chunk)
    const whole = new MemorySource(concatBytes(parts), shown(url))
    return isPage || isHtml(parts[0]) ? 'page' : whole
  }
  let hasPage = isPage
  if (ok && !isPage) {
    for await (const chunk of answer.chunks()) {
      hasPage = isHtml(chunk)
      break
    }
  }
  await answer.cancel()
  if (ABSENT.includes(status)) return 'absent'
  if (hasPage) return 'page'
  if (!ok) throw urlRefusal(url, answer.response)
  const byteLength = Number(text)
  if (text !== undefined && Number.isSafeInteger(byteLength))
    return { url, byteLength, version, hasRanges: status === 206 }
  throw new FileError({
    where: shown(url),
    what: 'the server does not tell the length',
    expected: 'a Content-Range header',
  })
}
