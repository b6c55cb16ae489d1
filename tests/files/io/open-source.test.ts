import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { planMerge } from 'lowrank'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { nodePlatform } from '../../../src/api/node/platform.js'
import type { Directory } from '../../../src/api/node.js'
import { type ByteSource, type Place, readJson } from '../../../src/core/base/bytes.js'
import { openText } from '../../../src/files/io/node/open-source.js'
import { openTextInBrowser } from '../../../src/files/io/web/open-source.js'
import { FakeCaches } from './hub/fake-caches.js'
import { current, FILES, failure, isWeights, noise, text, useHub, WEIGHTS } from './hub/toolkit.js'

useHub()

const LARGE = noise(9 << 20)

/** A web server for a folder, which records requests. */
class Site {
  files: Record<string, Uint8Array> = {}
  hasRanges = true
  /** True to hide Content-Range, as browsers do if a server of another origin does not expose it. */
  hidesRange = false
  /** A part of each file's ETag. */
  version: string | undefined = '1'
  readonly seen: { path: string; range: string | undefined; authorization: string | undefined }[] = []
  url = ''
  #server!: Server

  async start(): Promise<this> {
    this.#server = createServer((request, response) => this.#answer(request, response))
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve))
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
    return this
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }

  get loads(): string[] {
    return this.seen.filter(({ range }) => range !== 'bytes=0-31').map(({ path: file }) => file)
  }

  #answer({ url, headers: { range, authorization } }: IncomingMessage, response: ServerResponse): void {
    this.seen.push({ path: url!, range, authorization })
    const content = this.files[decodeURIComponent(new URL(url!, this.url).pathname)]
    if (content === undefined) return void response.writeHead(404).end('<html>no such page</html>')
    const [, first, last] = (this.hasRanges && /bytes=(\d+)-(\d*)/.exec(range ?? '')) || []
    const [from, to] = [Number(first ?? 0), Math.min(Number(last || content.length - 1), content.length - 1)]
    const part = content.subarray(from, to + 1)
    const headers = { 'content-length': part.length, ...(this.version !== undefined && { etag: `"${this.version}"` }) }
    if (first === undefined) response.writeHead(200, headers)
    else if (this.hidesRange) response.writeHead(206, headers)
    else response.writeHead(206, { ...headers, 'content-range': `bytes ${from}-${to}/${content.length}` })
    response.end(part)
  }
}

async function contentOf(directory: Directory, file: string, offset = 0, byteLength?: number): Promise<Uint8Array> {
  const source = await directory.open(file)
  try {
    return await source.read(offset, byteLength ?? source.byteLength)
  } finally {
    await source.close()
  }
}

let site: Site
let caches: FakeCaches

beforeEach(async () => {
  site = await new Site().start()
  const config = FILES['config.json']
  site.files = { '/m/config.json': config, '/m/onnx/model.onnx': WEIGHTS, '/m/a b/model.safetensors': LARGE }
  caches = new FakeCaches()
})

afterEach(() => site.stop())

const inNode = (source: string, more = {}): Promise<Place> => {
  const variables = {
    HF_HOME: current.home,
    XDG_CACHE_HOME: current.home,
    HF_ENDPOINT: current.hub.endpoint,
    HF_TOKEN: 'hf_right',
  }
  return openText(source, 'model', { variables, times: { retryMs: 1 }, ...more })
}
const inBrowser = (source: string, more = {}): Promise<Place> =>
  openTextInBrowser(source, 'model', { endpoint: current.hub.endpoint, caches, times: { retryMs: 1 }, ...more })

describe.each([
  ['Node', inNode],
  ['a browser', inBrowser],
])('sources in %s', (_, open) => {
  test('a model on the Hub, a folder of it, a graph, another file', async () => {
    expect(await open('org/model')).toMatchObject({ directory: { name: 'org/model' }, file: undefined })
    expect(await open('hf:org/model@main/onnx')).toMatchObject({
      directory: { name: 'org/model/onnx' },
      file: undefined,
    })
    expect(await open('hf:org/model/onnx/model.onnx')).toMatchObject({
      directory: { name: 'org/model' },
      file: 'onnx/model.onnx',
    })
    expect(await open('hf:org/model/README.md')).toMatchObject({ directory: { name: 'org/model' }, file: 'README.md' })
    const address = `${current.hub.endpoint}/org/model/blob/main/onnx/model.onnx`
    expect(await open(address)).toMatchObject({ directory: { name: 'org/model' }, file: 'onnx/model.onnx' })
    const missing = await failure(open('hf:org/model/onxx'))
    expect(missing.message).toMatch(
      /org\/model\/onxx: no such folder or file in the repository. It has onnx\/, README.md, config.json/,
    )
  })

  test('a folder on a web server, and a graph in it', async () => {
    const { directory, file } = await open(`${site.url}/m`)
    expect(file).toBeUndefined()
    expect(await directory.list()).toEqual(['config.json'])
    expect(await directory.folders!()).toEqual(['onnx'])
    expect(await readJson(directory, 'config.json')).toEqual({ model_type: 'llama' })
    expect(await directory.has('tokenizer.json')).toBe(false)
    expect(isWeights(await contentOf(directory, 'onnx/model.onnx'))).toBe(true)
    expect((await failure(directory.open('missing.json'))).message).toMatch(
      /\/m\/missing.json: no such file on the server/,
    )
    const graph = await open(`${site.url}/m/onnx/model.onnx`)
    expect(graph).toMatchObject({ directory: { name: `${site.url}/m/` }, file: 'onnx/model.onnx' })
    const checkpoint = await open(`${site.url}/m/a%20b/model.safetensors`)
    expect(checkpoint).toMatchObject({ directory: { name: `${site.url}/m/a%20b/` }, file: 'model.safetensors' })
    expect(site.seen.map(({ authorization }) => authorization)).not.toContain('Bearer hf_right')
  })

  test('what a server sent is kept until it has another version', async () => {
    const load = async () => contentOf((await open(`${site.url}/m`)).directory, 'onnx/model.onnx')
    for (const _ of [1, 2]) expect(isWeights(await load())).toBe(true)
    expect(site.loads).toHaveLength(1)
    site.version = '2'
    site.files['/m/onnx/model.onnx'] = text('other')
    expect(await load()).toEqual(text('other'))
    site.version = undefined
    site.files['/m/onnx/model.onnx'] = text('third')
    expect(await load()).toEqual(text('third'))
  })

  test('a server without ranges, a signature, progress', async () => {
    site.hasRanges = false
    const progress: { name: string; byteLength: number; receivedBytes: number }[] = []
    const options = { onDownload: (event: (typeof progress)[0]) => progress.push(event), readsRanges: true }
    const { directory } = await open(`${site.url}/m/a b?signature=s`, options)
    const part = await contentOf(directory, 'model.safetensors', 5_000_000, 1000)
    expect(Buffer.compare(part, LARGE.subarray(5_000_000, 5_001_000))).toBe(0)
    expect(site.seen.every(({ path: file }) => file.endsWith('?signature=s'))).toBe(true)
    const name = `${site.url}/m/a%20b/model.safetensors`
    expect(progress[0]).toEqual({ name, byteLength: LARGE.byteLength, receivedBytes: 0 })
    expect(progress.at(-1)).toMatchObject({ receivedBytes: LARGE.byteLength })
  })

  test('a server whose Content-Range a page may not see', async () => {
    site.hidesRange = true
    const { directory } = await open(`${site.url}/m`)
    expect(isWeights(await contentOf(directory, 'onnx/model.onnx'))).toBe(true)
  })

  test('ranges of what is read in part', async () => {
    const { directory } = await open(`${site.url}/m/a b`, { readsRanges: true })
    expect(await contentOf(directory, 'model.safetensors', 7, 3)).toEqual(LARGE.slice(7, 10))
    expect(site.seen.at(-1)!.range).toBe('bytes=7-262150')
  })

  test('a file that changes while it is read', async () => {
    const { directory } = await open(`${site.url}/m/a b`, { readsRanges: true })
    const source = await directory.open('model.safetensors')
    await source.read(0, 10)
    site.version = '2'
    await expect(source.read(5_000_000, 10)).rejects.toThrow(
      /model.safetensors: the server sent other bytes.*expected the version "1", got "2"/,
    )
  })

  test('a name that leads out of the folder, and a server that fails', async () => {
    const { directory } = await open(`${site.url}/m/onnx`)
    await expect(directory.open('../config.json')).rejects.toThrow(/leads out of the folder/)
    await expect(open(`${site.url}/m/..%2Fconfig.json`)).rejects.toThrow(/leads out of the folder|no such file/)
    await site.stop()
    expect((await failure(directory.has('model.onnx'))).message).toMatch(/cannot be reached/)
    await site.start()
  })
})

test('paths are as they were', async () => {
  const model = path.join('models', 'union-3m')
  expect(await inNode(model)).toMatchObject({ directory: { name: model }, file: undefined })
  expect(await inNode(`./${model}/config.json`)).toMatchObject({ file: 'config.json' })
  const graph = await inNode(path.join(model, 'onnx', 'model.onnx'))
  expect(graph).toMatchObject({ directory: { name: model }, file: 'onnx/model.onnx' })
  expect((await failure(inNode('./org/model'))).message).toMatch(/no such file or folder/)
  await expect(inBrowser('./model')).rejects.toThrow(/a path, and browsers cannot open paths/)
  expect(current.hub.seen).toEqual([])
})

describe('addresses', () => {
  const url = pathToFileURL(path.resolve('models', 'union-3m')).href
  test('file:// is a path, for models, data and results', async () => {
    expect(await inNode(url)).toMatchObject({ directory: { name: path.resolve('models', 'union-3m') } })
    const data = (await nodePlatform.openData(`${url}/config.json`, 'data')) as ByteSource
    expect(data).toMatchObject({ byteLength: expect.any(Number) })
    await data.close()
    expect(nodePlatform.target(url, 'out').name).toBe(path.resolve('models', 'union-3m'))
  })

  test.each([
    ['s3://bucket/x', 'aws s3 cp'],
    ['gs://bucket/x', 'gcloud storage cp'],
    ['https://example.com/x.jsonl', 'curl -LO'],
    ['ftp://example.com/x', 'name the path on this machine'],
    ['file://host/x', 'names no path'],
  ])('%s is refused with what to do', async (address, words) => {
    await expect(nodePlatform.openData(address, 'data')).rejects.toThrow(words)
    expect(() => nodePlatform.target(address, 'out')).toThrow(words)
    await expect(
      planMerge({ base: 'models/union-3m', adapters: 'tests/golden/peft/f32', out: address }),
    ).rejects.toThrow(words)
    if (!address.startsWith('https')) await expect(inNode(address)).rejects.toThrow(words)
  })
})
