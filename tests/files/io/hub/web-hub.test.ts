import { describe, expect, test } from 'vitest'
import { readAll } from '../../../../src/core/base/bytes.js'
import { type HubSource, parseSource } from '../../../../src/files/io/source.js'
import { openHubInBrowser, type WebHubOptions } from '../../../../src/files/io/web/open-source.js'
import { FakeCaches } from './fake-caches.js'
import { current, FILES, failure, isWeights, noise, text, useHub } from './toolkit.js'

useHub()

const LARGE = noise(20 << 20)

function open(id: string, caches: FakeCaches | undefined, options: WebHubOptions = {}) {
  return openHubInBrowser(parseSource(id, { where: 'model' }) as HubSource, {
    endpoint: current.hub.endpoint,
    caches,
    times: { stallMs: 2000, retryMs: 5 },
    onDownload: (event) => current.progress.push(event),
    onWarning: (message) => current.warnings.push(message),
    ...options,
  })
}

async function contentOf(id: string, file: string, caches: FakeCaches, options?: WebHubOptions) {
  return readAll(await (await open(id, caches, options)).open(file))
}

describe('the Hub in a browser', () => {
  test('a file comes once, and stays when the Hub is gone', async () => {
    const caches = new FakeCaches()
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', caches))).toBe(true)
    expect(current.progress[0]).toEqual({ name: 'org/model/onnx/model.onnx', byteLength: 300_000, receivedBytes: 0 })
    expect(current.progress.at(-1)!.receivedBytes).toBe(300_000)
    current.hub.seen.length = 0
    current.progress.length = 0
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', caches))).toBe(true)
    expect(current.hub.seen.map(({ path }) => path)).toEqual(['/api/models/org/model/revision/main'])
    expect(current.progress).toEqual([])
    await current.hub.stop()
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', caches))).toBe(true)
    expect(current.warnings).toEqual([expect.stringMatching(/cannot be reached.*The copy in the browser is used/)])
  })

  test('a large file goes on with the part that is missing', async () => {
    current.hub.repositories.set('org/large', { files: { 'model.onnx': LARGE }, lfs: ['model.onnx'] })
    const caches = new FakeCaches()
    const control = new AbortController()
    const stopped = contentOf('org/large', 'model.onnx', caches, {
      signal: control.signal,
      onDownload: ({ receivedBytes }) =>
        receivedBytes > 9 << 20 && control.abort(new DOMException('stopped', 'AbortError')),
    })
    await expect(stopped).rejects.toMatchObject({ name: 'AbortError' })
    current.hub.seen.length = 0
    expect(Buffer.compare(await contentOf('org/large', 'model.onnx', caches), LARGE)).toBe(0)
    expect(current.progress[0].receivedBytes).toBe(8 << 20)
    const ranges = current.hub.seen.filter(({ origin }) => origin === 'storage').map(({ range }) => range)
    expect(ranges).toEqual([`bytes=${8 << 20}-${(16 << 20) - 1}`, `bytes=${16 << 20}-${(20 << 20) - 1}`])
  })

  test('ranges of what is read in part are not kept', async () => {
    current.hub.repositories.set('org/large', { files: { 'model.safetensors': LARGE }, lfs: ['model.safetensors'] })
    const caches = new FakeCaches()
    const source = await (await open('org/large', caches, { readsRanges: true })).open('model.safetensors')
    expect(Buffer.compare(await source.read(5_000_000, 1000), LARGE.subarray(5_000_000, 5_001_000))).toBe(0)
    expect(caches.byteLength).toBeLessThan(1000)
  })

  test('a browser that grants no room, or has no cache', async () => {
    const caches = new FakeCaches()
    caches.maxBytes = 1000
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', caches))).toBe(true)
    expect(current.warnings).toEqual([expect.stringMatching(/does not keep what is loaded \(no room\)/)])
    expect(isWeights(await readAll(await (await open('org/model', undefined)).open('onnx/model.onnx')))).toBe(true)
  })

  test('what comes damaged is dropped', async () => {
    const caches = new FakeCaches()
    current.hub.faults.set('onnx/model.onnx', { content: noise(300_000).reverse() })
    expect((await failure(contentOf('org/model', 'onnx/model.onnx', caches))).message).toMatch(
      /arrived damaged.*SHA-256/,
    )
    current.hub.faults.set('config.json', { content: text('{"model_type": "lloma"}') })
    expect((await failure(contentOf('org/model', 'config.json', caches))).message).toMatch(
      /arrived damaged.*git's SHA-1/,
    )
    current.hub.faults.clear()
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', caches))).toBe(true)
  })

  test('what another page left in the cache is not believed', async () => {
    const caches = new FakeCaches()
    await contentOf('org/model', 'config.json', caches)
    for (const url of caches.entries.keys()) {
      if (url.includes('/tree/')) caches.entries.set(url, new Blob(['[{"path": "../x"}]']))
    }
    expect(await (await open('org/model', caches)).list()).toContain('config.json')
  })

  test('says what is wrong as in Node', async () => {
    expect((await failure(open('org/other', new FakeCaches()))).message).toMatch(/no such model on the Hub/)
    current.hub.repositories.set('org/gated', { files: FILES, access: 'gated' })
    expect((await failure(contentOf('org/gated', 'config.json', new FakeCaches()))).message).toMatch(
      /Accept the terms at/,
    )
  })
})
