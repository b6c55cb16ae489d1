// All code that removes or renames files. Each place may touch only files that lowrank named and wrote; a new place is
// added here with the reason why it does.

import { expect, it } from 'vitest'
import { filesIn, textOf } from './project.js'

const PLACES: Readonly<Record<string, string>> = {
  'src/files/io/node/files.ts': 'a file that a caller of the folder names, as Directory.remove promises',
  'src/files/io/node/folders.ts': 'empty folders that this process made',
  'src/files/io/node/reserve.ts': 'locks, whose names have the token of a process that has ended, or of this one',
  'src/files/io/node/whole-output.ts':
    'hidden folders that have a token, files that a caller names, results that may be replaced',
  'src/files/io/hub/node/open-hub.ts': 'files in the cache, under names that only the cache gives',
  'src/files/io/hub/node/download.ts': 'partial downloads, under names that only the cache gives',
  'src/api/node/example-file.ts': 'a temporary file that this process has just made',
  'src/serve/store/node/earlier.ts':
    'records that are rows now: they are moved to before-database/, and empty folders go',
  'src/serve/store/node/verbs.ts': 'the copy of a database in a temporary folder that this process made',
  'src/serve/store/node/open.ts': 'store.open, which says that a server has the store open',
  'src/serve/jobs/node/job-process.ts': 'step-N.tmp in the folder of the job, which only the process of the job makes',
}

const SOURCES = filesIn('src', ['.ts']).map((file) => [file, textOf(file)] as const)
const CALLS = ['rm', 'rmdir', 'rename', 'unlink', 'truncate', 'rmSync', 'rmdirSync', 'renameSync', 'unlinkSync']

it('removes and renames files in places that are known', () => {
  const found = SOURCES.flatMap(([file, text]) => {
    const imports = [...text.matchAll(/import \{([^}]*)\} from 'node:fs(?:\/promises)?'/g)].flatMap(([, names]) =>
      names.split(','),
    )
    return imports.some((name) => CALLS.includes(name.trim())) ||
      /node:fs.*\bimport\(|import \* as .*node:fs/.test(text)
      ? [file]
      : []
  })
  expect(found.sort()).toEqual(Object.keys(PLACES).sort())
})

it('removes whole folders only if they are hidden and its own', () => {
  const found = SOURCES.flatMap(([file, text]) =>
    [...text.matchAll(/\brm(?:Sync)?\([^)]*recursive: true/g)].map(() => file),
  )
  expect(found.sort()).toEqual(['src/files/io/node/whole-output.ts', 'src/serve/jobs/node/job-process.ts'])
})
