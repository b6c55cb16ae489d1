// How much code of lowrank a page fetches to train a step and write an answer, to write with an adapter that it loads,
// and to write only. Vite builds the page with its defaults, and Chromium opens it. All scripts that the page and its
// worker fetch count, each gzipped. ONNX Runtime, the model and the adapter do not count.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { build } from 'vite'
import { afterAll, describe, expect, it } from 'vitest'
import { browser, openPage } from '../browser.js'
import { repository } from './consumer.js'

const MODEL = join(repository, 'models/union-3m')
const ADAPTER = join(repository, 'tests/golden/peft/rslora')
const MODEL_FILES = ['config.json', 'generation_config.json', 'tokenizer.json', 'onnx/model.onnx']
const ADAPTER_FILES = ['adapter_config.json', 'adapter_model.safetensors']
const RUNTIME_FILES = ['ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm']

/** The folder of onnxruntime-web's files, or undefined if it is not installed. */
function webRuntimeFolder(): string | undefined {
  try {
    return dirname(createRequire(import.meta.url).resolve('onnxruntime-web/wasm'))
  } catch {
    console.log('skipped: no onnxruntime-web here (npm install --no-save onnxruntime-web@1.30.0)')
    return undefined
  }
}

const runtime = webRuntimeFolder()

const PAGE = `
async function folder(path, names) {
  const fetched = names.map(async (name) => [name, new Uint8Array(await (await fetch(path + name)).arrayBuffer())])
  return new MemoryDirectory(Object.fromEntries(await Promise.all(fetched)))
}
const openModel = async () =>
  loadModel(await folder('/model/', ${JSON.stringify(MODEL_FILES)}), {
    runtime: webRuntime('/ort/${RUNTIME_FILES[0]}', '/ort/${RUNTIME_FILES[1]}'),
  })
// There is no top-level await, which would keep bundlers from joining chunks.
run()
  .then(JSON.stringify, (error) => JSON.stringify({ failed: String(error?.stack ?? error) }))
  .then((body) => fetch('/result', { method: 'POST', body }))
`

/** The limit of gzipped bytes, the number of workers, and the code of each page. */
const PAGES = {
  'trains and writes': {
    limit: 243_000,
    workers: 2,
    page: `
import { loadModel, MemoryDirectory, openSession, train, webRuntime } from 'lowrank'
async function run() {
  const model = await openModel()
  const { adapter } = await train({ model, data: [{ text: 'And the people of the United States' }], maxSteps: 1 })
  const session = await openSession(model, { adapters: { mine: adapter } })
  return (await session.generate('And the', { adapter: 'mine', maxNewTokens: 3 })).text.length > 0
}`,
  },
  'only writes with an adapter': {
    limit: 126_000,
    workers: 1,
    page: `
import { loadModel, MemoryDirectory, openSession, webRuntime } from 'lowrank'
async function run() {
  const mine = await folder('/adapter/', ${JSON.stringify(ADAPTER_FILES)})
  const session = await openSession(await openModel(), { adapters: { mine } })
  return (await session.generate('And the', { adapter: 'mine', maxNewTokens: 3 })).text.length > 0
}`,
  },
  'writes with an adapter that it loads': {
    limit: 150_500,
    workers: 1,
    page: `
import { loadAdapter, loadModel, MemoryDirectory, openSession, webRuntime } from 'lowrank'
async function run() {
  const adapter = await loadAdapter(await folder('/adapter/', ${JSON.stringify(ADAPTER_FILES)}))
  const session = await openSession(await openModel(), { adapters: { mine: adapter } })
  return (await session.generate('And the', { adapter: 'mine', maxNewTokens: 3 })).text.length > 0
}`,
  },
}

/** Files of a server, which remembers the requested ones. */
class AskedFiles extends Map<string, Uint8Array> {
  readonly asked = new Set<string>()

  override has(path: string): boolean {
    this.asked.add(path)
    return super.has(path)
  }
}

describe.skipIf(browser === undefined || runtime === undefined)('the code of a page', () => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-size-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 20 }))

  it.each(Object.entries(PAGES))(
    'that %s is small, workers included',
    { timeout: 240_000 },
    async (name, { limit, workers, page }) => {
      const entry = '\0page'
      const outDir = join(folder, name)
      await build({
        configFile: false,
        logLevel: 'silent',
        root: repository,
        plugins: [
          {
            name: 'page',
            resolveId: (id) => (id === 'page' ? entry : undefined),
            load: (id) => (id === entry ? page + PAGE : undefined),
          },
        ],
        resolve: { alias: { lowrank: join(repository, 'dist/api/index.js') } },
        worker: { format: 'es' },
        build: {
          outDir,
          target: 'es2022',
          rolldownOptions: {
            input: { page: 'page' },
            external: /^(hyparquet|@mlc-ai)/,
            output: { entryFileNames: '[name].js' },
          },
        },
      })
      const files = new AskedFiles()
      for (const file of MODEL_FILES) files.set(`/model/${file}`, readFileSync(join(MODEL, file)))
      for (const file of ADAPTER_FILES) files.set(`/adapter/${file}`, readFileSync(join(ADAPTER, file)))
      for (const file of RUNTIME_FILES) files.set(`/ort/${file}`, readFileSync(join(runtime!, file)))
      expect(await openPage(outDir, files)).toBe(true)
      const scripts = [...files.asked].filter((path) => path.endsWith('.js'))
      const sizes = scripts.map((path) => gzipSync(readFileSync(join(outDir, path))).byteLength)
      const total = sizes.reduce((sum, size) => sum + size, 0)
      console.log(`${name}: ${scripts.length} scripts, ${(total / 1000).toFixed(1)} kB gzipped`)
      if (process.env.LIST) for (const [i, s] of scripts.entries()) console.log(`   ${sizes[i]} ${s}`)
      expect(scripts.filter((path) => /worker-/.test(path)).length).toBe(workers)
      expect(total).toBeLessThanOrEqual(limit)
    },
  )
})
