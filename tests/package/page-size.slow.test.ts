// What a page fetches of lowrank, from opening a model to the first trained step and the first answer: few have fast
// networks.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { build } from 'vite'
import { afterAll, describe, expect, it } from 'vitest'
import { browser, openPage } from '../browser.js'
import { repository } from './consumer.js'

const MAX_GZIP_BYTES = 280_000

const MODEL = join(repository, 'tests/golden/models/llama-optimum')
const MODEL_FILES = ['config.json', 'generation_config.json', 'tokenizer.json', 'onnx/model.onnx']
const RUNTIME_FILES = ['ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm']

/** The folder of onnxruntime-web's files; undefined where it is not installed. */
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
import { loadModel, MemoryDirectory, openSession, train, webRuntime } from 'lowrank'

async function run() {
  const files = {}
  for (const file of ${JSON.stringify(MODEL_FILES)}) {
    files[file] = new Uint8Array(await (await fetch('/model/' + file)).arrayBuffer())
  }
  const runtime = webRuntime('/ort/${RUNTIME_FILES[0]}', '/ort/${RUNTIME_FILES[1]}')
  const model = await loadModel(new MemoryDirectory(files), { runtime })
  const data = [{ text: 'And the people of the United States' }]
  const { adapter, report } = await train({ model, data, maxSteps: 1 })
  const session = await openSession(model, { adapters: { mine: adapter } })
  const { text } = await session.generate('And the', { adapter: 'mine', maxNewTokens: 3 })
  return { steps: report.trainLoss.length, isText: typeof text === 'string' }
}

const body = await run().then(JSON.stringify, (error) => JSON.stringify({ failed: String(error?.stack ?? error) }))
await fetch('/result', { method: 'POST', body })
`

/** Files of a server that remembers what it was asked for. */
class AskedFiles extends Map<string, Uint8Array> {
  readonly asked = new Set<string>()

  override has(path: string): boolean {
    this.asked.add(path)
    return super.has(path)
  }
}

describe.skipIf(browser === undefined || runtime === undefined)('the code of a page that trains and writes', () => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-size-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 20 }))

  it(`is at most ${MAX_GZIP_BYTES / 1000} kB gzipped, workers included`, { timeout: 240_000 }, async () => {
    const entry = '\0page'
    await build({
      configFile: false,
      logLevel: 'silent',
      root: repository,
      plugins: [
        {
          name: 'page',
          resolveId: (id) => (id === 'page' ? entry : undefined),
          load: (id) => (id === entry ? PAGE : undefined),
        },
      ],
      resolve: { alias: { lowrank: join(repository, 'dist/index.js') } },
      worker: { format: 'es' },
      build: {
        outDir: folder,
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
    for (const file of RUNTIME_FILES) files.set(`/ort/${file}`, readFileSync(join(runtime!, file)))
    expect(await openPage(folder, files)).toEqual({ steps: 1, isText: true })
    const scripts = [...files.asked].filter((path) => path.endsWith('.js'))
    const sizes = scripts.map((path) => gzipSync(readFileSync(join(folder, path))).byteLength)
    const total = sizes.reduce((sum, size) => sum + size, 0)
    console.log(`${scripts.length} scripts, ${(total / 1000).toFixed(1)} kB gzipped`)
    expect(scripts.filter((path) => /worker-/.test(path)).length).toBe(2)
    expect(total).toBeLessThanOrEqual(MAX_GZIP_BYTES)
  })
})
