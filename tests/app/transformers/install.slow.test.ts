// Installs lowrank and transformers.js with npm in either order, builds a page with Vite, and opens it in Chromium.

import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build } from 'vite'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
// @ts-expect-error A script without declarations.
import { PACKAGE, VERSION } from '../../../scripts/transformers-js.mjs'
import { browser, openPage } from '../../browser.js'
import { filesBelow, installed, repository } from '../../package/consumer.js'
import { transformers } from './installed.js'

const MODEL = ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'onnx/model.onnx']
const ADAPTER = ['adapter_config.json', 'adapter_model.safetensors']
/** The largest file that Cloudflare Pages accepts. */
const LARGEST = 25 * 2 ** 20

const PAGE = `
import { env } from '@huggingface/transformers'
import { MemoryDirectory } from 'lowrank'
import { pipelineWithAdapters } from 'lowrank/transformers'

async function folder(base, files) {
  const contents = files.map(async (file) => [file, new Uint8Array(await (await fetch(base + file)).arrayBuffer())])
  return new MemoryDirectory(Object.fromEntries(await Promise.all(contents)))
}

async function run() {
  Object.assign(env, { useWasmCache: false, useBrowserCache: false, allowRemoteModels: false })
  env.backends.onnx.wasm.wasmPaths = '/ort/'
  const adapters = { a: await folder('/adapter/', ${JSON.stringify(ADAPTER)}) }
  const write = await pipelineWithAdapters('text-generation', await folder('/model/', ${JSON.stringify(MODEL)}), { adapters })
  const options = { max_new_tokens: 10, do_sample: false, return_full_text: false }
  const [[base], [adapted]] = [await write('And the people', options), await write('And the people', { ...options, adapter: 'a' })]
  return [base.generated_text, adapted.generated_text]
}

const body = await run().then(JSON.stringify, (error) => JSON.stringify({ failed: String(error?.stack ?? error) }))
await fetch('/result', { method: 'POST', body })
`

describe.skipIf(transformers === undefined)('lowrank beside transformers.js, installed by npm', () => {
  const parent = mkdtempSync(join(tmpdir(), 'lowrank-install-'))
  afterAll(() => rmSync(parent, { recursive: true, force: true, maxRetries: 20 }))
  const env = { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' }
  const npm = (cwd: string, ...args: string[]) =>
    execFileSync('npm', [...args, '--no-audit', '--no-fund', '--loglevel=error'], { cwd, env, encoding: 'utf8' })

  const OTHER = `${PACKAGE}@${VERSION}`
  let tarball = ''
  beforeAll(() => {
    tarball = join(installed().folder, 'lowrank.tgz')
  })

  it.each([
    ['together', () => [[tarball, OTHER]]],
    ['lowrank first', () => [[tarball], [OTHER]]],
    ['transformers.js first', () => [[OTHER], [tarball]]],
  ])('%s: there is one ONNX Runtime', (order, steps) => {
    const folder = join(parent, order)
    mkdirSync(folder)
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'user', private: true, type: 'module' }))
    for (const packages of steps()) npm(folder, 'install', ...packages)
    for (const name of ['onnxruntime-web', 'onnxruntime-node']) {
      const found = filesBelow(join(folder, 'node_modules')).filter((file) => file.endsWith(`${name}/package.json`))
      expect(found).toEqual([`${name}/package.json`])
    }
  })

  it.skipIf(browser === undefined)(
    'a page built by Vite writes with adapters, and without its files above 25 MiB',
    async () => {
      const root = join(parent, 'together')
      expect(existsSync(join(root, 'node_modules/lowrank'))).toBe(true)
      writeFileSync(join(root, 'page.mjs'), PAGE)
      const outDir = join(root, 'built')
      await build({
        root,
        configFile: false,
        logLevel: 'silent',
        build: {
          outDir,
          target: 'es2022',
          rolldownOptions: { input: join(root, 'page.mjs'), output: { entryFileNames: '[name].js' } },
        },
      })
      // For hosts that take no file above 25 MiB: docs/transformers-js.md.
      for (const file of filesBelow(outDir)) if (file.endsWith('.wasm')) rmSync(join(outDir, file))
      expect(filesBelow(outDir).filter((file) => statSync(join(outDir, file)).size > LARGEST)).toEqual([])
      const runtime = join(root, 'node_modules/onnxruntime-web/dist')
      const wasm = ['mjs', 'wasm'].map((ending) => `ort-wasm-simd-threaded.asyncify.${ending}`)
      const files = new Map<string, Uint8Array>([
        ...wasm.map((file) => [`/ort/${file}`, readFileSync(join(runtime, file))] as const),
        ...MODEL.map((file) => [`/model/${file}`, readFileSync(join(repository, 'models/union-3m', file))] as const),
        ...ADAPTER.map(
          (file) => [`/adapter/${file}`, readFileSync(join(repository, 'tests/golden/peft/rslora', file))] as const,
        ),
      ])
      const texts = await openPage(outDir, files)
      expect(texts).toEqual([expect.stringMatching(/\w/), expect.stringMatching(/\w/)])
      expect(new Set(texts as string[]).size).toBe(2)
    },
  )
})
