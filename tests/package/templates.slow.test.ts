// The templates: installed from the packed tarball beside transformers.js, built, and opened in Chromium.

import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { createServer, preview } from 'vite'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { LoraAdapter, MemoryDirectory, saveAdapter } from '../../src/api/node.js'
import { browser } from '../browser.js'
import { WITHOUT_GPU } from '../chromium.js'
import { publish } from '../files/io/hub/publish.js'
import { FakeHub } from '../files/io/hub/server.js'
import { openPage } from '../page.js'
import { filesBelow, installed, repository } from './consumer.js'

const TEMPLATES = join(repository, 'templates')
const QUANTIZED = join(repository, 'tests/golden/models/llama-q4')
const manifestOf = (name: string) => JSON.parse(readFileSync(join(TEMPLATES, name, 'package.json'), 'utf8'))

/** Installs what all templates need in one folder. Returns false, and a line says why, if npm cannot. */
function install(folder: string): boolean {
  const manifests = ['vite', 'next', 'html'].map(manifestOf)
  const all = (field: string) => Object.assign({}, ...manifests.map((manifest) => manifest[field]))
  const lowrank = `file:${join(installed().folder, 'lowrank.tgz')}`
  const dependencies = { ...all('dependencies'), ...all('devDependencies'), lowrank }
  writeFileSync(
    join(folder, 'package.json'),
    JSON.stringify({ private: true, dependencies, overrides: all('overrides') }),
  )
  try {
    const npm = ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', '--loglevel=error']
    execFileSync('npm', npm, { cwd: folder, stdio: 'pipe' })
    return true
  } catch (error) {
    console.log(`skipped: the packages of the templates cannot be installed here: ${String(error).split('\n')[0]}`)
    return false
  }
}

describe.skipIf(browser === undefined)('the template', () => {
  const root = mkdtempSync(join(tmpdir(), 'lowrank-templates-'))
  const at = (...path: string[]) => join(root, ...path)
  let canRun = false
  beforeAll(() => {
    canRun = install(root)
  })
  afterAll(() => rmSync(root, { recursive: true, force: true, maxRetries: 20 }))

  /** Copies templates into one folder, with a model and an adapter where the README puts them. */
  function copy(to: string, names: readonly string[], shared = 'public'): void {
    for (const name of names)
      cpSync(join(TEMPLATES, name), at(to), { recursive: true, filter: (path) => to !== '' || !/\.json$/.test(path) })
    cpSync(join(repository, 'models/union-3m'), at(to, shared, 'model'), { recursive: true })
    cpSync(join(repository, 'tests/golden/peft/rslora'), at(to, shared, 'adapter'), { recursive: true })
  }

  const run = (folder: string, file: string, ...args: string[]) =>
    execFileSync(process.execPath, [at('node_modules', file), ...args], {
      cwd: at(folder),
      stdio: 'pipe',
      env: { ...process.env, NEXT_TELEMETRY_DISABLED: '1', NODE_OPTIONS: '' },
    })

  async function serve(folder: string): Promise<string> {
    const options = { root: folder, configFile: false as const, logLevel: 'silent' as const, appType: 'mpa' as const }
    const server = await preview({ ...options, build: { outDir: folder }, preview: { port: 0, host: '127.0.0.1' } })
    onTestFinished(() => server.close())
    return `http://127.0.0.1:${(server.httpServer.address() as AddressInfo).port}/`
  }

  /** Presses the button, and expects two texts, which differ. */
  async function expectWrites(address: string, flags: readonly string[] = [], hosts: string[] = []): Promise<void> {
    const page = await openPage(address, [...WITHOUT_GPU, ...flags])
    onTestFinished(() => page.close())
    const texts = () => page.evaluate("['alone', 'mine'].map((id) => document.getElementById(id)?.textContent ?? '')")
    await page.evaluate("document.querySelector('form button').click()")
    for (let i = 0; i < 600 && (await texts())[1] === ''; i++) await setTimeout(100)
    const [alone, mine] = await texts()
    for (const text of [alone, mine]) expect(text, page.errors.join('\n')).toMatch(/^And the people ?\w/)
    expect(mine).not.toBe(alone)
    const allowed = ['blob:', 'data:', address.split('/').slice(0, 3).join('/'), ...hosts]
    expect(page.requests.filter((url) => !allowed.some((start) => url.startsWith(start)))).toEqual([])
  }

  it('has one onnxruntime-web', ({ skip }) => {
    if (!canRun) skip()
    const found = filesBelow(at('node_modules')).filter((file) => file.endsWith('onnxruntime-web/package.json'))
    expect(found).toEqual(['onnxruntime-web/package.json'])
  })

  it('of a plain page runs', async ({ skip }) => {
    if (!canRun) skip()
    copy('', ['html'], '')
    await expectWrites(await serve(root))
  })

  it('of Vite runs', async ({ skip }) => {
    if (!canRun) skip()
    copy('vite', ['vite'])
    run('vite', 'vite/bin/vite.js', 'build')
    await expectWrites(await serve(at('vite/dist')))
    expect(filesBelow(at('vite/dist')).filter((file) => file.endsWith('.wasm'))).toHaveLength(1)
  })

  it('of Vite runs while it is developed: files that it does not have are answered by its page', async ({ skip }) => {
    if (!canRun) skip()
    copy('dev', ['vite'])
    rmSync(at('dev/public/model/generation_config.json'))
    const server = await createServer({ root: at('dev'), logLevel: 'silent', server: { port: 0, host: '127.0.0.1' } })
    onTestFinished(() => server.close())
    await server.listen()
    await expectWrites(`http://127.0.0.1:${(server.httpServer!.address() as AddressInfo).port}/`, [], ['ws:'])
  })

  it('of an extension runs', async ({ skip }) => {
    if (!canRun) skip()
    copy('extension', ['vite', 'chrome-extension'])
    run('extension', 'vite/bin/vite.js', 'build')
    const dist = at('extension/dist')
    // Chromium derives the id of an unpacked extension from its path.
    const digest = createHash('sha256').update(dist).digest('hex').slice(0, 32)
    const id = digest.replace(/./g, (digit) => String.fromCharCode(97 + Number.parseInt(digit, 16)))
    const flags = [`--load-extension=${dist}`, '--disable-features=DisableLoadExtensionCommandLineSwitch']
    await expectWrites(`chrome-extension://${id}/index.html`, flags)
  })

  it('of Vite runs the line of docs/web.md: a LoRA of the Hub on a published graph of 4 bits', async ({ skip }) => {
    if (!canRun) skip()
    const hub = await new FakeHub().start()
    onTestFinished(() => hub.stop())
    publish(hub, 'HuggingFaceTB/SmolLM2-135M-Instruct', QUANTIZED, {
      'onnx/model_q4.onnx': readFileSync(join(QUANTIZED, 'onnx/model.onnx')),
    })
    const lora = new LoraAdapter({ rank: 1, targetModules: ['up_proj'] })
    const wave = (length: number) => Array.from({ length }, (_, i) => Math.sin(i))
    lora.addFactors(
      'model.layers.0.mlp.up_proj',
      [wave(32)],
      wave(64).map((value) => [value]),
    )
    const folder = new MemoryDirectory()
    await saveAdapter(lora, folder)
    hub.repositories.set('you/your-lora', { files: Object.fromEntries(folder.files), lfs: [] })

    const [, block] = /^```js\n(.*?)^```$/ms.exec(readFileSync(join(repository, 'docs/web.md'), 'utf8'))!
    copy('line', ['vite'])
    const main = readFileSync(at('line/main.js'), 'utf8')
      .split('let opening')[0]
      .replace(/^.*pipelineWithAdapters.*$/m, '')
    writeFileSync(
      at('line/main.js'),
      `${main}
       import { configureHub } from 'lowrank'
       document.querySelector('form').onsubmit = () => false
       configureHub({ endpoint: ${JSON.stringify(hub.endpoint)} })
       ${block}
       document.getElementById('mine').textContent = text
       document.getElementById('alone').textContent = (await write('And the people', { max_new_tokens: 20 }))[0].generated_text`,
    )
    run('line', 'vite/bin/vite.js', 'build', '--target', 'es2022')
    await expectWrites(await serve(at('line/dist')), [], [hub.endpoint, hub.storage])
    expect(hub.loaded).toContain('adapter_model.safetensors')
    expect(hub.loaded).not.toContain('onnx/model.onnx')
  })

  it('of Next.js runs', async ({ skip }) => {
    if (!canRun) skip()
    copy('next', ['next'])
    cpSync(at('node_modules/onnxruntime-web/dist'), at('next/public/ort'), { recursive: true })
    writeFileSync(at('next/next.config.mjs'), "export default { output: 'export' }")
    run('next', 'next/dist/bin/next', 'build')
    await expectWrites(await serve(at('next/out')))
  })
})

describe('the template of Electron', () => {
  it('gives the files of dist/ to the page, and no other files', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-electron-'))
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
    cpSync(join(TEMPLATES, 'electron/main.cjs'), join(folder, 'main.cjs'))
    // Electron's binary comes from GitHub, which tests do without: this stands for its modules.
    writeFileSync(
      join(folder, 'node_modules.cjs'),
      `const asked = exports.asked = {}
       exports.app = { whenReady: async () => {}, on() {} }
       exports.net = { fetch: async (url) => url }
       exports.protocol = {
         registerSchemesAsPrivileged(schemes) { asked.schemes = schemes },
         handle(scheme, answer) { asked[scheme] = answer },
       }
       exports.BrowserWindow = class { loadURL(url) { asked.url = url } }`,
    )
    const main = readFileSync(join(folder, 'main.cjs'), 'utf8')
    writeFileSync(join(folder, 'main.cjs'), main.replace("require('electron')", "require('./node_modules.cjs')"))
    const require = createRequire(join(folder, 'main.cjs'))
    require('./main.cjs')
    await setTimeout(0)
    const { asked } = require('./node_modules.cjs')
    expect(asked.url).toBe('app://page/index.html')
    expect(asked.schemes[0].scheme).toBe('app')
    const ask = (url: string) => asked.app({ url, headers: {} })
    expect(await ask('app://page/model/config.json')).toMatch(/^file:.*\/dist\/model\/config\.json$/)
    for (const url of ['app://page/..%2fmain.cjs', 'app://page/%2e%2e%2f%2e%2e%2fetc/passwd'])
      expect((await ask(url)).status).toBe(404)
  })
})
