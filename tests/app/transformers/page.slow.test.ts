// Pipelines with adapters in Chromium, on WASM and on WebGPU: their texts are Node's, and caches stay on the GPU. The
// page imports another copy of ONNX Runtime than transformers.js does.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build } from 'vite'
import { afterAll, describe, expect, it } from 'vitest'
import { pipelineWithAdapters } from '../../../src/app/transformers/node/entry.js'
import { browser, openPage, WEBGPU } from '../../browser.js'
import { repository } from '../../package/consumer.js'
import { installedIn, transformers } from './installed.js'

const MODEL = 'models/union-3m'
const ADAPTER = 'tests/golden/peft/rslora'
const RUNTIME = join(installedIn, 'node_modules/onnxruntime-web/dist')

const job = {
  prompt: 'And the people',
  options: { max_new_tokens: 10, do_sample: false, return_full_text: false },
  model: ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'onnx/model.onnx'],
  adapter: ['adapter_config.json', 'adapter_model.safetensors'],
  wasmPaths: {
    mjs: '/ort/ort-wasm-simd-threaded.asyncify.mjs',
    wasm: '/ort/ort-wasm-simd-threaded.asyncify.wasm',
  },
}

interface Result {
  texts: Record<string, string[]>
  /** The texts of transformers.js alone. */
  own: string[]
  runtimes: number
  /** Whether transformers.js is left with a cache of lowrank. */
  caches: boolean
  locations: string[]
}

describe.skipIf(browser === undefined || transformers === undefined)('a page with transformers.js', () => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-tjs-page-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 20 }))

  it('writes what Node writes, on WASM and WebGPU, and keeps the cache on the GPU', { timeout: 240_000 }, async () => {
    const peers = join(installedIn, 'node_modules')
    await build({
      configFile: false,
      logLevel: 'silent',
      root: repository,
      resolve: {
        alias: [
          { find: /^lowrank$/, replacement: join(repository, 'dist/api/index.js') },
          { find: /^lowrank\/transformers$/, replacement: join(repository, 'dist/app/transformers/entry.js') },
          {
            find: /^@huggingface\/transformers$/,
            replacement: join(peers, '@huggingface/transformers/dist/transformers.web.js'),
          },
        ],
      },
      plugins: [
        {
          name: 'two copies of ONNX Runtime',
          enforce: 'pre',
          resolveId: (id, importer) =>
            id !== 'onnxruntime-web/webgpu'
              ? undefined
              : /@huggingface/.test(importer ?? '')
                ? join(RUNTIME, 'ort.webgpu.bundle.min.mjs')
                : '\0other',
          load: (id) => (id === '\0other' ? "export const env = { versions: { web: '1.0.0' } }" : undefined),
        },
      ],
      worker: { format: 'es' },
      build: {
        outDir: folder,
        target: 'es2022',
        minify: false,
        rolldownOptions: {
          input: join(repository, 'tests/app/transformers/page.mjs'),
          external: /^(hyparquet|@mlc-ai)/,
          output: { entryFileNames: '[name].js' },
        },
      },
    })
    const files = new Map<string, Uint8Array>([['/job.json', Buffer.from(JSON.stringify(job))]])
    for (const file of job.model) files.set(`/model/${file}`, readFileSync(join(repository, MODEL, file)))
    for (const file of job.adapter) files.set(`/adapter/${file}`, readFileSync(join(repository, ADAPTER, file)))
    for (const path of Object.values(job.wasmPaths)) files.set(path, readFileSync(join(RUNTIME, path.slice(5))))

    const write = await pipelineWithAdapters('text-generation', MODEL, { adapters: { a: ADAPTER }, transformers })
    const expected: string[] = []
    for (const adapter of [null, 'a']) {
      const [{ generated_text: text }] = await write(job.prompt, { ...job.options, adapter })
      expected.push(text)
    }
    await write.dispose()

    const { texts, own, runtimes, caches, locations } = (await openPage(folder, files, {}, WEBGPU)) as Result
    expect(texts).toEqual({ wasm: expected, webgpu: expected })
    expect({ runtimes, caches }).toEqual({ runtimes: 2, caches: false })
    expect(own).toEqual([expected[0]])
    expect(locations.sort()).toEqual(['logits cpu', 'present gpu-buffer'])
  })
})
