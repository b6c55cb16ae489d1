import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, describe, expect, test } from 'vitest'
import { FileError } from '../../../src/base/errors.js'
import { BlobSource, openUrl } from '../../../src/io/web/files.js'

const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i * 3)

describe('BlobSource', () => {
  test('reads slices', async () => {
    const source = new BlobSource(new Blob([bytes]), 'picked')
    expect(source.byteLength).toBe(1000)
    expect(await source.read(10, 5)).toEqual(bytes.subarray(10, 15))
    await expect(source.read(999, 2)).rejects.toThrow(/picked: read past the end/)
  })

  test("a File's name is its own", () => {
    expect(new BlobSource(new File([bytes], 'a.safetensors')).name).toBe('a.safetensors')
  })
})

describe('openUrl', () => {
  let server: Server
  const requests: (string | undefined)[] = []

  async function serve(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<string> {
    requests.length = 0
    server = createServer((request, response) => {
      requests.push(request.headers.range)
      answer(request, response)
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}/x`
  }

  afterEach(() => {
    server?.closeAllConnections()
    server?.close()
  })

  function ranges(content: Uint8Array, etag: () => string = () => '"1"') {
    return (request: IncomingMessage, response: ServerResponse) => {
      const [, first, last] = /bytes=(\d+)-(\d+)/.exec(request.headers.range!)!
      const part = content.subarray(Number(first), Number(last) + 1)
      const range = `bytes ${first}-${Number(first) + part.length - 1}/${content.length}`
      response.writeHead(206, { 'content-range': range, etag: etag() }).end(part)
    }
  }

  test('asks for the ranges that are read and nothing else', async () => {
    const source = await openUrl(await serve(ranges(bytes)))
    expect(source.byteLength).toBe(1000)
    expect(await source.read(100, 50)).toEqual(bytes.subarray(100, 150))
    expect(await source.read(5, 0)).toEqual(new Uint8Array())
    expect(requests).toEqual(['bytes=0-0', 'bytes=100-149'])
    await expect(source.read(990, 11)).rejects.toThrow(/read past the end/)
  })

  test('a server without ranges: one download', async () => {
    const source = await openUrl(await serve((_, response) => response.end(bytes)))
    expect(await source.read(100, 50)).toEqual(bytes.subarray(100, 150))
    expect(requests).toHaveLength(1)
  })

  test('an empty resource', async () => {
    const url = await serve((_, response) => response.writeHead(416, { 'content-range': 'bytes */0' }).end())
    expect((await openUrl(url)).byteLength).toBe(0)
  })

  test.each([404, 403, 500])('status %i is an error that names the URL', async (status) => {
    const url = await serve((_, response) => response.writeHead(status).end())
    await expect(openUrl(url)).rejects.toThrow(FileError)
    await expect(openUrl(url)).rejects.toThrow(
      `${url}: the server answered with an error; expected 200 or 206, got ${status}`,
    )
  })

  test('content that changes between reads', async () => {
    let etag = '"1"'
    const source = await openUrl(await serve(ranges(bytes, () => etag)))
    etag = '"2"'
    await expect(source.read(0, 10)).rejects.toThrow(/changed on the server/)
  })

  test('a server that cannot be reached, and a request that is aborted', async () => {
    const failing = async () => {
      throw new TypeError('fetch failed')
    }
    await expect(openUrl('http://nowhere.invalid/x', { fetch: failing })).rejects.toThrow(/cannot be reached/)
    const url = await serve(ranges(bytes))
    await expect(openUrl(url, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/i)
  })
})
