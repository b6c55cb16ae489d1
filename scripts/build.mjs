// Compiles src/ to dist/: a clean folder each time, so that a deleted module cannot survive in the package. Beside it comes
// dist/browser.js: all of the entry for browsers in one module, for pages without a bundler.
import { execFileSync } from 'node:child_process'
import { chmodSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'vite'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const dist = join(root, 'dist')
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')
rmSync(dist, { recursive: true, force: true })
execFileSync(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json')], { stdio: 'inherit' })
chmodSync(join(dist, 'cli', 'main.js'), 0o755)

/** One module with all that the entry imports, now or later; peers stay imports. */
async function bundle(entry, { write = false, plugins = [] } = {}) {
  const result = await build({
    configFile: false,
    root: dist,
    logLevel: 'error',
    plugins,
    build: {
      lib: { entry: join(dist, entry), formats: ['es'], fileName: () => 'browser.js' },
      outDir: dist,
      emptyOutDir: false,
      minify: true,
      target: 'es2022',
      write,
      rolldownOptions: { external: /^hyparquet/, output: { codeSplitting: false } },
    },
  })
  return [result].flat()[0].output[0].code
}

// A worker's script may not come from another server than the page, but a copy that the page itself holds may.
const WORKER = /new Worker\(new URL\('\.\.\/(\w+)\/worker\.js', import\.meta\.url\), \{ type: 'module' \}\)/g
const inlineWorkers = {
  name: 'inline-workers',
  enforce: 'pre',
  async transform(code, id) {
    if (!id.endsWith('web-runtime.js')) return undefined
    const scripts = {}
    for (const [, kind] of code.matchAll(WORKER)) scripts[kind] = await bundle(`${kind}/worker.js`)
    if (Object.keys(scripts).length === 0) throw new Error('web-runtime.js starts its workers in another way')
    const inlined = code.replace(
      WORKER,
      "new Worker(URL.createObjectURL(new Blob([SCRIPTS.$1], { type: 'text/javascript' })), { type: 'module' })",
    )
    return `const SCRIPTS = ${JSON.stringify(scripts)}\n${inlined}`
  },
}
await bundle('index.js', { write: true, plugins: [inlineWorkers] })
