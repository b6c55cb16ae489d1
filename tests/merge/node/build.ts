// The merge as plain JavaScript, for child processes and worker threads, which cannot run TypeScript.

import { mkdtemp, rm } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { build } from 'vite'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const source = (file: string) => path.join(root, 'src/merge/node', file)

/** Builds into a folder inside the project, so that packages are found. `merge` is the URL of the entry. */
export async function buildMerge(): Promise<{ merge: string; remove(): Promise<void> }> {
  const folder = await mkdtemp(path.join(root, 'node_modules/.merge-test-'))
  await build({
    configFile: false,
    root,
    logLevel: 'silent',
    ssr: { noExternal: true },
    build: {
      ssr: true,
      outDir: folder,
      minify: false,
      rolldownOptions: {
        input: { merge: source('merge.ts'), worker: source('worker.ts') },
        output: { entryFileNames: '[name].js' },
      },
    },
  })
  return {
    merge: pathToFileURL(path.join(folder, 'merge.js')).href,
    remove: () => rm(folder, { recursive: true, force: true }),
  }
}
