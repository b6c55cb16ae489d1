// Notes of an unfinished merge on disk: with damaged ones a merge that continues gives the right bytes, or says why not.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { merge } from '../../../dist/node.js'
import { root } from '../inputs.mjs'
import { mutateJson } from '../mutate.mjs'

const base = join(root, 'tests/golden/merge/llama/base')
const adapters = join(root, 'tests/golden/merge/llama/adapter')
const options = { base, adapters, threads: 1, fsync: false, maxShardBytes: 20_000 }

let made
/** What one of two jobs leaves, and the result of an undisturbed merge: made once in a process. */
async function unfinished() {
  if (made !== undefined) return made
  const scratch = mkdtempSync(join(tmpdir(), 'lowrank-fuzz-'))
  process.once('exit', () => rmSync(scratch, { recursive: true, force: true }))
  await merge({ ...options, out: join(scratch, 'out'), share: { index: 0, count: 2 } })
  const [partial] = readdirSync(scratch)
  const files = contents(join(scratch, partial))
  await merge({ ...options, out: join(scratch, 'whole') })
  made = { scratch, partial, files, whole: contents(join(scratch, 'whole')) }
  return made
}

function contents(folder) {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  const paths = entries.map((entry) => join(entry.parentPath, entry.name))
  return new Map(paths.map((path) => [path.slice(folder.length + 1), readFileSync(path)]).sort())
}

const isNote = (name) => /^\.merge[\\/].*json$/.test(name)

export const targets = [
  {
    name: 'merge-notes',
    seeds: async () => [...(await unfinished()).files.keys()].filter(isNote).map((_, index) => String(index)),
    async make(index) {
      const { files } = await unfinished()
      return files.get([...files.keys()].filter(isNote)[Number(index)])
    },
    mutate: mutateJson,
    async check(bytes, index) {
      const { scratch, partial, files, whole } = await unfinished()
      for (const name of readdirSync(scratch))
        if (name !== 'whole') rmSync(join(scratch, name), { recursive: true, force: true })
      const changed = [...files.keys()].filter(isNote)[Number(index)]
      for (const [name, content] of files) {
        const path = join(scratch, partial, name)
        mkdirSync(join(path, '..'), { recursive: true })
        writeFileSync(path, name === changed ? bytes : content)
      }
      await merge({ ...options, out: join(scratch, 'out'), resume: true })
      const result = contents(join(scratch, 'out'))
      for (const [name, content] of whole) {
        if (name === 'lowrank-merge.json') continue
        if (!result.get(name)?.equals(content))
          throw new Error(`${name} has other bytes than after an undisturbed merge`)
      }
    },
  },
]
