// The package in other tools: bundlers, a page without a bundler, Bun, Deno, and the oldest TypeScript that can read
// the declarations. .ci/run installs tools that are not development dependencies. Without a tool, its test is skipped.

import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { build as viteBuild } from 'vite'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { browser, openPage } from '../browser.js'
import { type Consumer, filesBelow, installConsumer, link, repository } from './consumer.js'

const require = createRequire(import.meta.url)

/** Returns the folder of a package, or undefined if it is not installed. A line says so. */
function folderOf(name: string): string | undefined {
  try {
    return dirname(require.resolve(`${name}/package.json`))
  } catch {
    console.log(`skipped: no ${name} here (npm install --no-save ${name})`)
    return undefined
  }
}

const MODEL = join(repository, 'tests/golden/models/llama-optimum')
const ADAPTER = join(repository, 'tests/golden/peft/f32')
const [esbuild, webpack, bun, deno, oldTypeScript] = ['esbuild', 'webpack', 'bun', 'deno', 'typescript-5.7'].map(
  folderOf,
)

const NEXT = ['next@16', 'react@19', 'react-dom@19']
const NEXT_PAGE = `
import { useEffect } from 'react'
export default function Page() {
  useEffect(() => void import('../page.mjs'), [])
  return <p>A page</p>
}
`

let consumer: Consumer
beforeAll(() => {
  consumer = installConsumer('tools')
  link(consumer, 'onnxruntime-node')
  copyFileSync(join(repository, 'tests/package/page.mjs'), join(consumer.folder, 'page.mjs'))
})
afterAll(() => consumer?.remove())

/** Makes an empty folder for the output of a tool. */
function output(name: string): string {
  const folder = join(consumer.folder, 'built', name)
  mkdirSync(folder, { recursive: true })
  return folder
}

/** Returns webpack's errors, or ''. */
async function bundleWithWebpack(entry: string, folder: string): Promise<string> {
  const bundle = require(webpack!) as (
    options: object,
    done: (error: Error | null, stats: { hasErrors(): boolean; toString(): string }) => void,
  ) => void
  const options = {
    mode: 'production',
    // Minifying would take a minute and would not change what is tested.
    optimization: { minimize: false },
    context: consumer.folder,
    entry,
    output: { path: folder, filename: 'page.js', publicPath: '/' },
    target: ['web', 'es2022'],
  }
  return new Promise((resolve, reject) => {
    bundle(options, (error, result) => (error ? reject(error) : resolve(result.hasErrors() ? result.toString() : '')))
  })
}

/** Expects that a browser gets no code for Node. */
function expectForBrowsers(folder: string): void {
  const scripts = filesBelow(folder).filter((file) => /\.m?js$/.test(file))
  expect(scripts.length).toBeGreaterThan(0)
  for (const script of scripts) {
    const code = readFileSync(join(folder, script), 'utf8')
    expect(
      /from ?["'`]node:|import\(["'`]node:|worker_threads\.Worker|__vite-browser-external/.exec(code)?.[0],
    ).toBeUndefined()
  }
}

describe.skipIf(browser === undefined)('in Chromium', () => {
  const modelFiles = new Map(
    ['config.json', 'tokenizer.json', 'onnx/model.onnx'].map((file) => [
      `/model/${file}`,
      new Uint8Array(readFileSync(existsSync(join(MODEL, file)) ? join(MODEL, file) : join(MODEL, file.slice(5)))),
    ]),
  )

  async function expectRuns(folder: string): Promise<void> {
    expectForBrowsers(folder)
    expect(await openPage(folder, modelFiles)).toEqual({
      weightB: [3, 4],
      isOneClass: true,
      path: 'CONFIG',
      worker: 'RUNTIME',
      message: expect.stringContaining('no-runtime-here'),
    })
  }

  it('a page without a bundler', async () => {
    const folder = output('plain')
    copyFileSync(join(consumer.folder, 'node_modules/lowrank/dist/browser.js'), join(folder, 'browser.js'))
    const page = readFileSync(join(consumer.folder, 'page.mjs'), 'utf8')
    // The one module has the main entry; lowrank/handoff is for bundlers.
    const plain = page
      .replace("from 'lowrank'", "from './browser.js'")
      .replace("import { handoff } from 'lowrank/handoff'", 'const handoff = (run) => saveAdapter(run)')
    writeFileSync(join(folder, 'page.js'), plain)
    expect(readdirSync(folder).sort()).toEqual(['browser.js', 'page.js'])
    await expectRuns(folder)
  })

  it('Vite', async () => {
    const folder = output('vite')
    const lib = { entry: join(consumer.folder, 'page.mjs'), formats: ['es' as const], fileName: 'page' }
    await viteBuild({
      root: consumer.folder,
      configFile: false,
      logLevel: 'silent',
      build: { lib, outDir: folder, target: 'es2022' },
    })
    await expectRuns(folder)
  })

  it.skipIf(webpack === undefined)('webpack', async () => {
    const folder = output('webpack')
    expect(await bundleWithWebpack('./page.mjs', folder)).toBe('')
    await expectRuns(folder)
  })

  it('Next.js, with the page of docs/training-in-browsers.md', async () => {
    const folder = output('next')
    const file = (path: string, content: string) => consumer.write(join('built/next', path), content)
    file('package.json', JSON.stringify({ name: 'next-page', private: true }))
    const npm = ['install', '../../lowrank.tgz', ...NEXT, '--no-audit', '--no-fund', '--prefer-offline']
    const { status, stderr } = spawnSync('npm', npm, { cwd: folder, encoding: 'utf8' })
    if (status !== 0) return console.log(`skipped: Next.js cannot be installed here: ${stderr.split('\n')[0]}`)
    const docs = readFileSync(join(repository, 'docs/training-in-browsers.md'), 'utf8')
    file('pages/index.jsx', /^```jsx\n(.*?)^```$/ms.exec(docs)![1])
    file('pages/check.jsx', NEXT_PAGE)
    copyFileSync(join(consumer.folder, 'page.mjs'), join(folder, 'page.mjs'))
    file('next.config.mjs', "export default { output: 'export' }")
    const env = { ...process.env, NEXT_TELEMETRY_DISABLED: '1' }
    execFileSync(process.execPath, ['node_modules/next/dist/bin/next', 'build'], { cwd: folder, env, stdio: 'pipe' })
    const built = join(folder, 'out')
    modelFiles.set('/check.html', new Uint8Array(readFileSync(join(built, 'check.html'))))
    writeFileSync(join(built, 'page.js'), "location.href = '/check.html'")
    await expectRuns(built)
  })

  it.skipIf(esbuild === undefined)('esbuild, which leaves workers to the page', async () => {
    const folder = output('esbuild')
    const { build } = require(esbuild!) as { build(options: object): Promise<unknown> }
    const options = { bundle: true, format: 'esm', platform: 'browser', target: 'es2022', logLevel: 'error' }
    const entries = { page: join(consumer.folder, 'page.mjs') }
    await build({ ...options, splitting: true, outdir: folder, entryPoints: entries })
    // esbuild keeps the URL as it is: ../../train/engine/worker.js, relative to the page.
    const worker = join(consumer.folder, 'node_modules/lowrank/dist/train/engine/worker.js')
    await build({ ...options, outfile: join(folder, 'train', 'engine', 'worker.js'), entryPoints: [worker] })
    await expectRuns(folder)
  })
})

// Bundlers copy the 27 MB of onnxruntime-web's WebAssembly when they read an import of it, used or not.
const BUNDLERS = {
  async Vite(entry: string, folder: string) {
    await viteBuild({
      root: consumer.folder,
      configFile: false,
      logLevel: 'silent',
      build: { outDir: folder, target: 'es2022', rolldownOptions: { input: join(consumer.folder, entry) } },
      worker: { format: 'es' },
    })
  },
  async webpack(entry: string, folder: string) {
    expect(await bundleWithWebpack(entry, folder)).toBe('')
  },
}

describe.each(Object.entries(BUNDLERS))('%s', (name, bundle) => {
  it.skipIf(name === 'webpack' && webpack === undefined)('copies no runtime for a page that names a URL', async () => {
    const web = { name: 'onnxruntime-web', type: 'module', exports: { './webgpu': './webgpu.js' } }
    consumer.write('node_modules/onnxruntime-web/package.json', JSON.stringify(web))
    consumer.write('node_modules/onnxruntime-web/webgpu.js', "export default new URL('ort.wasm', import.meta.url).href")
    consumer.write('node_modules/onnxruntime-web/ort.wasm', ' '.repeat(10_000))
    consumer.write('by-url/page.mjs', readFileSync(join(repository, 'tests/package/page.mjs'), 'utf8'))
    consumer.write('by-name/page.mjs', "import('onnxruntime-web/webgpu').then(console.log)")
    const copied: number[] = []
    for (const page of ['by-url', 'by-name']) {
      const folder = output(`${name}-${page}`)
      await bundle(`./${page}/page.mjs`, folder)
      copied.push(filesBelow(folder).filter((file) => file.endsWith('.wasm')).length)
    }
    expect(copied).toEqual([0, 1])
  })
})

describe('in Node', () => {
  const SCRIPT = `
    import { loadAdapter } from 'lowrank'
    const adapter = await loadAdapter(${JSON.stringify(ADAPTER)})
    console.log(adapter.size > 0)
  `

  // The entry puts Node's platform in place when it is imported: a bundler may not take that for dead code.
  it.skipIf(esbuild === undefined)('bundled by esbuild, paths are paths', async () => {
    const folder = output('esbuild-node')
    const { build } = require(esbuild!) as { build(options: object): Promise<unknown> }
    const options = { bundle: true, format: 'esm', platform: 'node', target: 'node20', logLevel: 'error' }
    const entry = consumer.write('paths.mjs', SCRIPT)
    await build({ ...options, splitting: true, outdir: folder, entryPoints: [entry], outExtension: { '.js': '.mjs' } })
    const run = spawnSync(process.execPath, [join(folder, 'paths.mjs')], { encoding: 'utf8' })
    expect(run.stderr).toBe('')
    expect(run.stdout).toBe('true\n')
  })
})

/** The command that runs a script in each runtime, if the runtime is installed. */
const RUNTIMES: Record<string, string[] | undefined> = {
  Bun:
    bun === undefined
      ? bun
      : [join(bun, 'bin', readdirSync(join(bun, 'bin')).find((file) => /^bun(\.exe)?$/.test(file))!)],
  Deno: deno === undefined ? deno : [process.execPath, join(deno, 'bin.cjs'), 'run', '-A', '--node-modules-dir=manual'],
}

describe.each(Object.entries(RUNTIMES))('in %s', (_, command) => {
  it.skipIf(command === undefined)('trains a step, and writes with the adapter', () => {
    const script = consumer.write(
      'runtime.mjs',
      `import process from 'node:process'
       import { LowrankError, openSession, train } from 'lowrank'
       import { handoff } from 'lowrank/handoff'
       import { createHandler } from 'lowrank/server'
       const model = ${JSON.stringify(MODEL)}
       const { adapter, report } = await train({ model, data: [{ text: 'And the people' }], maxSteps: 1 })
       const session = await openSession(model, { adapters: { trained: adapter } })
       const { tokens } = await session.generate('And', { adapter: 'trained', maxNewTokens: 2 })
       await session.dispose()
       const handler = await createHandler({ model, adapters: { trained: adapter }, servedModelName: 'base' })
       const { data } = await (await handler(new Request('http://localhost/v1/models'))).json()
       await handler.close()
       const served = data.map(({ id }) => id)
       const refused = await handoff({}).catch((error) => error)
       console.log(JSON.stringify({ steps: report.steps, tokens, served, isOneClass: refused instanceof LowrankError }))
       process.exit(0)`,
    )
    const [program, ...args] = command!
    // NODE_OPTIONS preloads a module that works only in Node, and these scripts run in Bun and Deno.
    const env = { ...process.env, NODE_OPTIONS: '' }
    const stdout = execFileSync(program, [...args, script], { cwd: consumer.folder, env, encoding: 'utf8' })
    expect(JSON.parse(stdout)).toEqual({ steps: 1, tokens: 2, served: ['base', 'trained'], isOneClass: true })
  })
})

describe.skipIf(oldTypeScript === undefined)('TypeScript 5.7, the oldest', () => {
  it('reads the declarations with the library of ES2022 alone', () => {
    consumer.write(
      'old.mts',
      `import { LoraLayer, openSession, train } from 'lowrank'
       import { handoff } from 'lowrank/handoff'
       export const all = [new LoraLayer([[1]], { rank: 1 }), openSession, train, handoff]`,
    )
    const compilerOptions = {
      target: 'ES2022',
      lib: ['ES2022'],
      types: [],
      module: 'nodenext',
      moduleResolution: 'nodenext',
      strict: true,
      noEmit: true,
      skipLibCheck: false,
    }
    consumer.write('tsconfig.old.json', JSON.stringify({ compilerOptions, files: ['old.mts'] }))
    const { stdout } = consumer.node(join(oldTypeScript!, 'bin', 'tsc'), '-p', 'tsconfig.old.json')
    expect(stdout).toBe('')
  })
})
