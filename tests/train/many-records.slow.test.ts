// Records of a training lie in a file: JavaScript's heap has no room for them here.

import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { root } from '../structure/project.js'

/** An object for each record takes 150 bytes at least, and no run has 64 MB of them. */
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
