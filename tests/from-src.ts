// Makes tests run src/ as it is now, without a build. In the tests' threads, the package's names lead to src/. Worker
// threads and other processes cannot run TypeScript, so src/ is bundled for them before the tests.

import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { build, type Plugin } from 'vite'
import type { TestProject } from 'vitest/node'
// @ts-expect-error A script without declarations.
import { kyselyLater } from '../scripts/kysely-later.mjs'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
/** A bundle that no run used for so long is removed. */
const KEPT_MS = 24 * 60 * 60 * 1000

/** How a module writes the address of another that a thread or a process shall run. Vite bundles those of pages. */
const STARTED = /(?<!new Worker\()new URL\('(\.\.?\/[^']+)\.js', import\.meta\.url\)/g

const { exports, peerDependencies } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))

/** The sources of the package's entries for Node, by the names of the entries. */
export const entries = Object.entries<{ node?: string | { default: string } }>(exports).flatMap(([name, { node }]) => {
  const built = typeof node === 'object' ? node.default : node
  if (built === undefined) return []
  const source = built.replace('./dist/', 'src/').replace(/\.js$/, '.ts')
  return [{ find: new RegExp(`^lowrank${name.slice(1)}$`), replacement: join(ROOT, source) }]
})

/** Leads the names of the entries to src/, and so what scripts import from the build. */
export const alias = [...entries, { find: /^(?:\.\.\/)+dist\/(.*)\.js$/, replacement: join(ROOT, 'src/$1.ts') }]

/** Leads addresses of modules in src/ to the bundle: `new URL('../src/api/node.js', import.meta.url)`. */
export const plugin: Plugin = {
  name: 'started-from-src',
  enforce: 'pre',
  transform: (code, id) => lead(code, id, (path) => `new URL('${path}', process.env.BUNDLE)`),
}

function lead(code: string, file: string, addressOf: (path: string) => string): string {
  return code.replace(STARTED, (address, started) => {
    const source = join(dirname(file), started)
    return existsSync(`${source}.ts`) ? addressOf(`${relative(join(ROOT, 'src'), source)}.js`) : address
  })
}

/** Lists the TypeScript files below a folder of the project. */
const filesIn = (folder: string) =>
  readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => join(ROOT, folder, name))
    .sort()

/** Bundles what threads and processes of the tests run, under the paths that the modules have in src/. */
async function bundle(): Promise<string> {
  const sources = filesIn('src')
  const hash = createHash('sha256')
  const started = new Set<string>()
  for (const file of [...sources, ...filesIn('tests')]) {
    const code = readFileSync(file, 'utf8')
    lead(code, file, (path) => {
      started.add(path)
      return ''
    })
    if (sources.includes(file)) hash.update(`${file}\0${code.length}\0${code}`)
  }
  for (const file of ['tests/from-src.ts', 'package-lock.json']) hash.update(readFileSync(join(ROOT, file)))
  const names = [...started].sort()
  const bundles = join(ROOT, 'out', 'test-bundles')
  const folder = join(bundles, hash.update(names.join('\0')).digest('hex').slice(0, 16))
  if (existsSync(folder)) {
    utimesSync(folder, new Date(), new Date())
    return folder
  }
  const unfinished = `${folder}.${process.pid}`
  await build({
    configFile: false,
    root: ROOT,
    logLevel: 'error',
    ssr: { noExternal: true, external: Object.keys(peerDependencies) },
    plugins: [
      kyselyLater,
      {
        name: 'places',
        enforce: 'pre',
        transform(code, id) {
          if (!code.includes('import.meta.url')) return undefined
          const place = JSON.stringify(pathToFileURL(id).href)
          // Other files, such as package.json and those of peers, are found from the source.
          return lead(code, id, (path) => `new URL('../${path}', import_meta_url)`)
            .replaceAll('import.meta.url', place)
            .replaceAll('import_meta_url', 'import.meta.url')
        },
      },
    ],
    build: {
      ssr: true,
      outDir: unfinished,
      minify: false,
      target: 'node20',
      rolldownOptions: {
        // What package.json says of side effects is about the files of dist/.
        treeshake: false,
        input: Object.fromEntries(names.map((path) => [path, join(ROOT, 'src', path.replace(/\.js$/, '.ts'))])),
        output: {
          entryFileNames: '[name]',
          chunkFileNames: 'modules/[name]-[hash].js',
          // One file loads faster than hundreds, and its modules run when an entry needs them.
          codeSplitting: { groups: [{ name: 'all' }] },
          strictExecutionOrder: true,
        },
      },
    },
  })
  try {
    renameSync(unfinished, folder)
  } catch (error) {
    // Another run of the tests was faster.
    if (!existsSync(folder)) throw error
    rmSync(unfinished, { recursive: true, force: true })
  }
  for (const name of readdirSync(bundles)) {
    const other = join(bundles, name)
    if (Date.now() - statSync(other).mtimeMs > KEPT_MS) rmSync(other, { recursive: true, force: true })
  }
  return folder
}

/** Vitest calls it before the tests, once for each project, and again before a watched run. */
export default async function setUp(project: TestProject): Promise<void> {
  const bundleAgain = async () => {
    process.env.BUNDLE = `${pathToFileURL(await bundle()).href}/`
  }
  project.onTestsRerun(bundleAgain)
  await bundleAgain()
}
