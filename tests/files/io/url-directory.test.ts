import { describe, expect, it } from 'vitest'
import { FileError } from '../../../src/api/node.js'
import type { FetchLike } from '../../../src/core/base/globals.js'
import { UrlDirectory } from '../../../src/files/io/url-directory.js'

const FILES = ['config.json', 'tokenizer.json']

/** A browser's fetch from a host that sends CORS headers with files, but not with errors. */
const withoutCors: FetchLike = async (url) => {
  const name = new URL(String(url)).pathname.split('/').at(-1)!
  if (!FILES.includes(name)) throw new TypeError('Failed to fetch')
  return new Response(new Uint8Array(1), { status: 206, headers: { 'content-range': 'bytes 0-0/1' } })
}

function folder(fetch: FetchLike, hidesRedirects: boolean): UrlDirectory {
  const connection = { endpoint: 'https://host.example', fetch, hidesRedirects, retryMs: 1 }
  return new UrlDirectory('https://host.example/model/', connection, () => Promise.reject(new Error('not opened')))
}

describe('a folder on a host whose refusals a page cannot read', () => {
  it('has the files that it sends, and no others', async () => {
    const directory = folder(withoutCors, true)
    expect(await directory.list()).toEqual(FILES)
    expect(await directory.has('chat_template.jinja')).toBe(false)
  })

  it('is unreachable if it sends nothing at all', async () => {
    const down: FetchLike = () => Promise.reject(new TypeError('Failed to fetch'))
    await expect(folder(down, true).has('config.json')).rejects.toThrow(FileError)
  })

  it('is unreachable outside of browsers, where a missing file has a status', async () => {
    await expect(folder(withoutCors, false).has('chat_template.jinja')).rejects.toThrow(FileError)
  })
})

describe('the folder of an extension', () => {
  it('is read whole: Chromium answers a range as if it were the whole file', async () => {
    const ofExtension: FetchLike = async (_, options) => {
      const text = new Headers(options?.headers as HeadersInit).has('range') ? '{' : '{"rank": 8}'
      return new Response(text, { headers: { 'content-length': String(text.length) } })
    }
    const connection = { endpoint: '', fetch: ofExtension, hidesRedirects: true }
    const open = () => Promise.reject(new Error('not opened'))
    const file = await new UrlDirectory('chrome-extension://abc/adapter/', connection, open).open('config.json')
    expect(new TextDecoder().decode(await file.read(0, file.byteLength))).toBe('{"rank": 8}')
  })
})

describe('a host that sends its page for each file that it does not have', () => {
  const page = '<!DOCTYPE html>\n<html><body>a page</body></html>'
  const config = '{"model_type": "llama"}'
  const answer = (text: string, range: string | null, type: string | undefined) => {
    const bytes = new TextEncoder().encode(text)
    const headers = new Headers()
    if (type !== 'chunked') headers.set('content-length', String(bytes.length))
    if (type?.includes('/')) headers.set('content-type', type)
    if (range === null) return new Response(bytes, { headers })
    const part = bytes.subarray(0, 32)
    headers.set('content-range', `bytes 0-${part.length - 1}/${bytes.length}`)
    return new Response(part, { status: 206, headers })
  }

  it.each([
    ['as Vite does', 'text/html', false],
    ['with ranges', 'text/html; charset=utf-8', true],
    ['without a type', undefined, false],
    ['without a type, with ranges', undefined, true],
    ['of another type', 'application/octet-stream', true],
    ['without a length', 'chunked', false],
  ])('%s: an optional file is absent, and a needed one is named with the reason', async (_, type, hasRanges) => {
    const fetch: FetchLike = async (url, options) => {
      const range = new Headers(options?.headers as HeadersInit).get('range')
      const isThere = String(url).endsWith('/config.json')
      return answer(isThere ? config : page, hasRanges ? range : null, isThere ? 'application/json' : type)
    }
    const directory = folder(fetch, true)
    expect(await directory.list()).toEqual(['config.json'])
    expect(await directory.folders()).toEqual([])
    expect(await directory.has('chat_template.jinja')).toBe(false)
    await expect(directory.open('tokenizer.json')).rejects.toThrow(
      /model\/tokenizer\.json: no such file.*page of HTML.*index\.html/s,
    )
  })
})
