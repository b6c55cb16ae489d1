// Compiles src/ to dist/. Also makes dist/browser.js, the whole entry for browsers in a single module for pages without
// a bundler, and dist/app/cli/bundle.js, the whole command line in a single module, which loads faster than hundreds.
// If neither the sources nor dist/ have changed since the last build, nothing is done. If only sources have changed,
// only their modules are written, and modules without a source are removed. Otherwise dist/ is made again from nothing.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'vite'
import joinFamilies from './generate/families.mjs'
import { kyselyLater } from './kysely-later.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const dist = join(root, 'dist')
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')

const { peerDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))

/** Digests of the files that the last build read and wrote. */
const STATE = join(root, 'out', 'build.sha256')
const COMPILED = join(root, 'out', 'build.tsbuildinfo')
const SETTINGS = [
  'scripts/build.mjs',
  'scripts/kysely-later.mjs',
  'tsconfig.json',
  'tsconfig.build.json',
  'package.json',
  'package-lock.json',
]

joinFamilies()

/** Lists all files below a folder, as paths with slashes. */
const filesIn = (folder) =>
  existsSync(folder)
    ? readdirSync(folder, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map(({ parentPath, name }) => join(parentPath, name))
        .sort()
    : []

function digest(paths) {
  const hash = createHash('sha256')
  for (const path of paths) {
    const content = readFileSync(path)
    hash.update(`${path}\0${content.length}\0`).update(content)
  }
  return hash.digest('hex')
}
const sources = () => digest([...SETTINGS.map((name) => join(root, name)), ...filesIn(join(root, 'src'))])
const outputs = () => digest(filesIn(dist))

const [lastSources, lastOutputs] = existsSync(STATE) ? readFileSync(STATE, 'utf8').split('\n') : []
const isUntouched = lastOutputs === outputs()
const from = sources()
if (isUntouched && lastSources === from) process.exit()
// Removed first, so that a build that is stopped on the way does not count.
rmSync(STATE, { force: true })

if (isUntouched) {
  const modules = filesIn(join(root, 'src')).map((path) => path.slice(join(root, 'src').length).replace(/\.ts$/, ''))
  const wanted = new Set(modules.flatMap((path) => [`${join(dist, path)}.js`, `${join(dist, path)}.d.ts`]))
  for (const path of filesIn(dist)) if (!wanted.has(path)) rmSync(path)
} else {
  for (const path of [dist, COMPILED]) rmSync(path, { recursive: true, force: true })
}
const args = ['--incremental', '--tsBuildInfoFile', COMPILED]
execFileSync(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json'), ...args], { stdio: 'inherit' })
chmodSync(join(dist, 'app', 'cli', 'main.js'), 0o755)

/** Makes a single module of everything that the entry imports, statically or later. Imports of peers stay. */
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
      rolldownOptions: { external: /^(hyparquet|@mlc-ai)/, output: { codeSplitting: false } },
    },
  })
  return [result].flat()[0].output[0].code
}

// A worker's script must come from the page's server. A copy that the page holds in a blob is allowed too.
const WORKER = /new Worker\(new URL\('(?:\.\.\/)+([\w/]+)\/worker\.js', import\.meta\.url\), \{ type: 'module' \}\)/g
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
      "new Worker(URL.createObjectURL(new Blob([SCRIPTS['$1']], { type: 'text/javascript' })), { type: 'module' })",
    )
    return `const SCRIPTS = ${JSON.stringify(scripts)}\n${inlined}`
  },
}
await bundle('api/index.js', { write: true, plugins: [inlineWorkers] })

/**
 * Replaces `import.meta.url` by the address of the module itself, because modules find files relative to themselves,
 * and the bundle is in another folder.
 */
const keepPlaces = {
  name: 'keep-places',
  enforce: 'pre',
  transform(code, id) {
    if (id.startsWith('\0')) return undefined
    const place = relative(join(dist, 'app', 'cli'), id).replaceAll('\\', '/')
    return code.replaceAll('import.meta.url', `new URL('${place}', import.meta.url).href`)
  },
}
await build({
  configFile: false,
  root: dist,
  logLevel: 'error',
  plugins: [keepPlaces, kyselyLater],
  ssr: { noExternal: true, external: Object.keys(peerDependencies) },
  build: {
    ssr: join(dist, 'app', 'cli', 'entry.js'),
    outDir: join(dist, 'app', 'cli'),
    emptyOutDir: false,
    // Names are kept, because reports of errors show them.
    minify: false,
    target: 'node20',
    rolldownOptions: {
      output: { entryFileNames: 'bundle.js', codeSplitting: false, comments: { legal: true, jsdoc: false } },
    },
  },
})
const main = join(dist, 'app', 'cli', 'main.js')
writeFileSync(main, readFileSync(main, 'utf8').replace('./entry.js', './bundle.js'))
mkdirSync(dirname(STATE), { recursive: true })
writeFileSync(STATE, `${from}\n${outputs()}`)
