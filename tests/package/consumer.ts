// A project outside the repository in which lowrank is installed from its tarball, as users do.

import { execFileSync, spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const repository = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

export interface Consumer {
  folder: string
  /** The files that `npm pack` put into the tarball. */
  packed: string[]
  write(path: string, content: string): string
  /** Runs Node in the project. */
  node(...args: string[]): { status: number | null; stdout: string; stderr: string }
  remove(): void
}

/**
 * Returns a project in which lowrank is installed from `lowrank.tgz`, and the files in the tarball. The first call in a
 * run of the tests makes the project for all test files. Dependencies come from the repository's node_modules, so that
 * no network is needed.
 */
export function installed(): { folder: string; packed: string[] } {
  // vitest.slow.config.ts names and removes it.
  const shared = process.env.INSTALLED!
  if (!existsSync(shared)) {
    const made = mkdtempSync(`${shared}-`)
    try {
      installIn(made)
      renameSync(made, shared)
    } catch (error) {
      rmSync(made, { recursive: true, force: true })
      // Another test file has made the project at the same time.
      if (!existsSync(shared)) throw error
    }
  }
  return { folder: join(shared, PROJECT), packed: JSON.parse(readFileSync(join(shared, 'packed.json'), 'utf8')) }
}

/** A folder name with characters that are special in URLs. */
const PROJECT = 'a project #1 at 100%'

function installIn(parent: string): void {
  if (!existsSync(join(repository, 'dist', 'api', 'index.js')))
    throw new Error('dist/ is missing: run `npm run build` first')
  const folder = join(parent, PROJECT)
  mkdirSync(folder)
  const npm = (args: string[], cwd: string) =>
    execFileSync('npm', [...args, '--ignore-scripts', '--loglevel=error'], { cwd, encoding: 'utf8', stdio: 'pipe' })

  const [tarball] = JSON.parse(npm(['pack', '--json', '--pack-destination', parent], repository))
  renameSync(join(parent, tarball.filename), join(folder, 'lowrank.tgz'))
  const packed = tarball.files.map(({ path }: { path: string }) => path)
  writeFileSync(join(parent, 'packed.json'), JSON.stringify(packed))
  const vendored = dependencyClosure('lowrank')
  for (const name of vendored) {
    cpSync(join(repository, 'node_modules', name), join(folder, 'vendor', name), { recursive: true })
  }
  const dependencies = Object.fromEntries(vendored.map((name) => [name, `file:vendor/${name}`]))
  const project = {
    name: 'consumer',
    private: true,
    type: 'module',
    dependencies: { lowrank: 'file:lowrank.tgz', ...dependencies },
  }
  writeFileSync(join(folder, 'package.json'), JSON.stringify(project))
  npm(['install', '--offline', '--install-links', '--no-audit', '--no-fund'], folder)
}

/** Makes a copy of {@link installed} for tests to write into. */
export function installConsumer(folderName: string): Consumer {
  const { folder: from, packed } = installed()
  const parent = mkdtempSync(join(tmpdir(), 'lowrank-'))
  const folder = join(parent, folderName)
  cpSync(from, folder, { recursive: true, verbatimSymlinks: true })

  return {
    folder,
    packed,
    write(path, content) {
      mkdirSync(dirname(join(folder, path)), { recursive: true })
      writeFileSync(join(folder, path), content)
      return join(folder, path)
    },
    node: (...args) => spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8' }),
    remove: () => rmSync(parent, { recursive: true, force: true }),
  }
}

/** Makes the repository's copy of a package visible to the consumer, as `npm link` does. */
export function link(consumer: Consumer, name: string): void {
  symlinkSync(join(repository, 'node_modules', name), join(consumer.folder, 'node_modules', name), 'junction')
}

/** Lists a package's dependencies at run time, and their dependencies. */
function dependencyClosure(name: string): string[] {
  const manifest =
    name === 'lowrank' ? join(repository, 'package.json') : join(repository, 'node_modules', name, 'package.json')
  const { dependencies = {} } = JSON.parse(readFileSync(manifest, 'utf8'))
  return [...new Set(Object.keys(dependencies).flatMap((dependency) => [dependency, ...dependencyClosure(dependency)]))]
}

/** Limits the trainings in a document's text to a few steps. Their output does not matter here. */
export const briefly = (text: string): string =>
  text
    .replace(/(--max-steps |maxSteps: )(\d+)/g, (_, option, steps) => option + Math.min(steps, 3))
    .replace(/(--epochs |epochs: )(\d+)/g, (_, option, epochs) => option + Math.min(epochs, 1))

/** Lists the files below a folder, relative to it. */
export function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
}
