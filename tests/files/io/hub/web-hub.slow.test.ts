import { describe, expect, test } from 'vitest'
import { browser, buildPage } from '../../../browser.js'
import { golden, publish } from './publish.js'
import { type FakeHub, sha256, TOKEN } from './server.js'
import { current, FILES, noise, text, useHub } from './toolkit.js'

useHub()

const LARGE = noise(20 << 20)

interface PageResult {
  adapter: number
  path: string
  config: unknown
  digest: number[]
  large: number[]
  files: string[]
  progress: { name: string }[]
  kept: string[]
}

describe.skipIf(browser === undefined)('Chromium', () => {
  const files = new Map<string, Uint8Array>()
  const page = buildPage<PageResult>('tests/files/io/hub/page.ts', files)

  test('keeps files in its Cache API, across origins and redirects', async () => {
    const hub: FakeHub = current.hub
    const repository = { ...FILES, 'model.safetensors': LARGE }
    hub.repositories.set('org/model', {
      files: repository,
      lfs: ['onnx/model.onnx', 'model.safetensors'],
      access: 'private',
    })
    publish(hub, 'org/lora', golden('f32'))
    files.set('/hub.json', text(JSON.stringify({ endpoint: hub.endpoint, token: TOKEN })))
    const result = await page.open({})
    expect(result).toMatchObject({ config: { model_type: 'llama' }, large: [...LARGE.subarray(1_000_000, 1_000_004)] })
    expect(result.adapter).toBeGreaterThan(0)
    expect(result.path).toMatch(/^source: a path, and browsers cannot open paths/)
    expect(Buffer.from(result.digest).toString('hex')).toBe(sha256(FILES['onnx/model.onnx']))
    const commit = hub.commitOf('org/model', 'main')
    const at = (file: string) => `/org/model/resolve/${commit}/${file}`
    expect(result.kept.filter((url) => url.includes('/resolve/')).sort()).toEqual([
      at('config.json'),
      at('onnx/model.onnx'),
    ])
    expect(hub.seen.filter(({ path }) => path.endsWith('/onnx/model.onnx'))).toHaveLength(1)
    const bearers = hub.seen.filter(({ origin }) => origin === 'storage').map(({ authorization }) => authorization)
    expect(new Set(bearers)).toEqual(new Set([undefined]))
  })
})
