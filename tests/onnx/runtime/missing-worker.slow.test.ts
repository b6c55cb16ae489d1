// Pages in Chromium whose server lacks the worker's script: the error names the requested address, which the bundler
// chose, and says what to do. .ci/run installs tools that are not development dependencies.

import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build as viteBuild } from 'vite'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { root } from '../../app/cli/lowrank.js'
import { browser, openPage } from '../../browser.js'
import { filesBelow } from '../../package/consumer.js'

const require = createRequire(import.meta.url)
const MODEL = join(root, 'tests/golden/models/llama-optimum')
const lowrank = join(root, 'dist/api/index.js')
const PAGE = `
import { loadModel, MemoryDirectory, openSession, train, webRuntime } from 'lowrank'

const files = {}
for (const file of ['config.json', 'tokenizer.json', 'onnx/model.onnx'])
  files[file] = new Uint8Array(await (await fetch('/model/' + file)).arrayBuffer())
const model = await loadModel(new MemoryDirectory(files), { runtime: webRuntime('/ort.mjs') })
const of = (call) => call.then(() => 'no error', (error) => error.name + ': ' + error.message)
const failed = { train: await of(train({ model, data: [{ text: 'a b' }], maxSteps: 1 })), infer: await of(openSession(model)) }
await fetch('/result', { method: 'POST', body: JSON.stringify({ ...failed, origin: location.origin }) })
`

interface Result {
  train: string
  infer: string
  origin: string
}

const has = (name: string): boolean => {
  try {
    return require.resolve(name) !== ''
  } catch {
    console.log(`skipped: no ${name} here (npm install --no-save ${name})`)
    return false
  }
}

describe.skipIf(browser === undefined)('a page without the scripts of its workers', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'lowrank-missing-'))
  const entry = join(scratch, 'page.mjs')
  const files = new Map<string, Uint8Array>()
  beforeAll(() => {
    writeFileSync(entry, PAGE)
    writeFileSync(join(scratch, 'package.json'), '{"type": "module"}')
    for (const file of ['config.json', 'tokenizer.json', 'onnx/model.onnx'])
      files.set(`/model/${file}`, readFileSync(join(MODEL, file)))
  })
  afterAll(() => rmSync(scratch, { recursive: true, force: true, maxRetries: 20 }))

  const output = (name: string): string => {
    const folder = join(scratch, name)
    mkdirSync(folder, { recursive: true })
    return folder
  }

  /** Expects that both errors name an address of this form, where the server has no file, and end with the remedy. */
  async function expectNamed(folder: string, headers: Record<string, string>, address: RegExp, remedy: RegExp) {
    const result = (await openPage(folder, files, headers)) as Result
    const urls = [result.train, result.infer].map((message) => {
      const [, url] = /^RuntimeError: (\S+): the script of the worker does not load/.exec(message) ?? [message, message]
      expect(message).toMatch(remedy)
      return url.replace(result.origin, '')
    })
    for (const url of urls) {
      expect(url).toMatch(address)
      expect(existsSync(join(folder, url))).toBe(false)
    }
    expect(new Set(urls).size).toBe(2)
    return urls
  }

  it('without a bundler, whose server has the modules alone', async () => {
    const folder = output('plain')
    const page = `
      import { webRuntime } from './api/platform/web-runtime.js'
      import { connect } from './onnx/runtime/rpc.js'

      const of = (kind) => connect(webRuntime('/ort.mjs').spawn(kind)).remote.loadRuntime('/ort.mjs')
        .then(() => 'no error', (error) => error.name + ': ' + error.message)
      const failed = { train: await of('train'), infer: await of('infer') }
      await fetch('/result', { method: 'POST', body: JSON.stringify({ ...failed, origin: location.origin }) })
    `
    writeFileSync(join(folder, 'page.js'), page)
    for (const part of ['core', 'onnx', 'api'])
      cpSync(join(root, 'dist', part), join(folder, part), { recursive: true })
    const urls = await expectNamed(folder, {}, /./, /import dist\/browser\.js of lowrank/)
    expect(urls).toEqual(['/train/engine/worker.js', '/run/worker.js'])
  })

  it('without a bundler, whose policy forbids workers of the page’s own', async () => {
    const folder = output('strict')
    cpSync(join(root, 'dist/browser.js'), join(folder, 'browser.js'))
    writeFileSync(join(folder, 'page.js'), PAGE.replace("from 'lowrank'", "from './browser.js'"))
    const policy = { 'content-security-policy': "worker-src 'self'" }
    await expectNamed(folder, policy, /^blob:/, /security policy must allow "worker-src blob:"/)
  })

  it('of Vite', async () => {
    const folder = output('vite')
    await viteBuild({
      configFile: false,
      logLevel: 'silent',
      root: scratch,
      resolve: { alias: { lowrank } },
      build: { lib: { entry, formats: ['es'], fileName: () => 'page.js' }, outDir: folder, target: 'es2022' },
    })
    for (const file of filesBelow(folder)) if (/^assets.worker-/.test(file)) rmSync(join(folder, file))
    await expectNamed(folder, {}, /^\/assets\/worker-[\w-]+\.js$/, /Publish all files .* set base \(Vite\)/)
  })

  it.skipIf(!has('webpack'))('of webpack', async () => {
    const folder = output('webpack')
    const webpack = require('webpack') as (options: object, done: (error: Error | null) => void) => void
    const options = {
      mode: 'production',
      optimization: { minimize: false },
      context: scratch,
      entry: './page.mjs',
      output: { path: folder, filename: 'page.js', publicPath: '/', workerPublicPath: '/elsewhere/' },
      resolve: { alias: { lowrank }, modules: [join(root, 'node_modules')] },
      externals: {
        'onnxruntime-web': 'undefined',
        'onnxruntime-web/webgpu': 'undefined',
        'onnxruntime-web/wasm': 'undefined',
        '@mlc-ai/web-xgrammar': 'undefined',
      },
      target: ['web', 'es2022'],
    }
    await new Promise<void>((resolve, reject) => webpack(options, (error) => (error ? reject(error) : resolve())))
    await expectNamed(folder, {}, /^\/elsewhere\/\d+\.page\.js$/, /set .*output\.publicPath \(webpack\)/)
  })

  it.skipIf(!has('esbuild'))('of esbuild', async () => {
    const folder = output('esbuild')
    const { build } = require('esbuild') as { build(options: object): Promise<unknown> }
    const form = {
      bundle: true,
      format: 'esm',
      platform: 'browser',
      target: 'es2022',
      splitting: true,
      logLevel: 'error',
    }
    const places = {
      alias: { lowrank },
      nodePaths: [join(root, 'node_modules')],
      external: ['onnxruntime-web', 'hyparquet*', '@mlc-ai/*'],
    }
    await build({ ...form, ...places, outdir: folder, entryPoints: [entry] })
    const urls = await expectNamed(
      folder,
      {},
      /./,
      /With esbuild, also build lowrank\/dist\/(train\/engine|run)\/worker\.js to this/,
    )
    expect(urls).toEqual(['/train/engine/worker.js', '/run/worker.js'])
  })
})
