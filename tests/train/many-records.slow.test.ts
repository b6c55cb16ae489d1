// A training keeps its records in a file. Here JavaScript's heap has no room for them.

import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { root } from '../structure/project.js'

/** As objects of at least 150 bytes, so many records would take 37 MB of a heap of 64 MB. */
const RECORDS = 250_000

it.each(['packed', 'labels', 'judged'])(
  'trains on more %s than the heap can hold',
  (form) => {
    const args = ['--train', form, '--records', String(RECORDS), '--heap', '64', '--json']
    const text = execFileSync(process.execPath, [join(root, 'bench/data.mjs'), ...args], {
      cwd: root,
      encoding: 'utf8',
    })
    expect(JSON.parse(text)).toMatchObject([{ form, records: RECORDS }])
  },
  300_000,
)
