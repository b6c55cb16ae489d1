// A page that opens models from a Hub of another origin, and reports the results.

import { configureHub, type DownloadProgress, loadAdapter } from '../../../../src/api/node.js'
import { readAll, readJson } from '../../../../src/core/base/bytes.js'
import { openHubInBrowser } from '../../../../src/files/io/web/open-source.js'

async function run() {
  const { endpoint, token } = (await (await fetch('/hub.json')).json()) as { endpoint: string; token: string }
  const source = { kind: 'hub', id: 'org/model', revision: 'main', path: '' } as const
  const progress: DownloadProgress[] = []
  const directory = await openHubInBrowser(source, { endpoint, token, onDownload: (event) => progress.push(event) })
  const config = await readJson(directory, 'config.json')
  const weights = await readAll(await directory.open('onnx/model.onnx'))
  const ranges = await openHubInBrowser(source, { endpoint, token, readsRanges: true })
  const large = await (await ranges.open('model.safetensors')).read(1_000_000, 4)
  const before = progress.length
  await readAll(await (await openHubInBrowser(source, { endpoint, token })).open('onnx/model.onnx'))
  const kept = (await (await caches.open('lowrank')).keys()).map(({ url }) => new URL(url).pathname)
  configureHub({ endpoint, token })
  const adapter = await loadAdapter('org/lora')
  const path = await loadAdapter('./lora').catch((error: Error) => error.message)
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', weights as Uint8Array<ArrayBuffer>))
  return {
    config,
    adapter: adapter.size,
    path,
    digest: [...digest],
    large: [...large],
    files: await directory.list(),
    progress: progress.slice(0, before),
    kept,
  }
}

const result = await run().catch((error: unknown) => ({ error: String(error) }))
await fetch('/result', { method: 'POST', body: JSON.stringify(result) })
