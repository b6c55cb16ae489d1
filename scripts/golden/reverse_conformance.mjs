// Reads every adapter of the conformance matrix with lowrank and writes it again, for check_conformance.py:
// OUT/ARCHITECTURE/OPTION.
//
//     node scripts/golden/reverse_conformance.mjs OUT

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadAdapter, saveAdapter } from 'lowrank'
import unpackAll from './packed.mjs'

const golden = fileURLToPath(new URL('../../tests/golden/conformance', import.meta.url))
const out = process.argv[2]
if (out === undefined) throw new Error('usage: node scripts/golden/reverse_conformance.mjs OUT')

unpackAll()
mkdirSync(out, { recursive: true })
const { architectures, options } = JSON.parse(readFileSync(join(golden, 'matrix.json'), 'utf8'))
const refused = {}
let written = 0
for (const architecture of Object.keys(architectures)) {
  for (const option of Object.keys(options)) {
    const folder = join(golden, architecture, option)
    if (JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')).refused !== undefined) continue
    const inner = join(folder, 'adapter', 'tuned')
    try {
      const adapter = await loadAdapter(existsSync(inner) ? inner : join(folder, 'adapter'))
      await saveAdapter(adapter, join(out, architecture, option))
      written++
    } catch (error) {
      refused[`${architecture} × ${option}`] = error.message
    }
  }
}
writeFileSync(join(out, 'refused.json'), JSON.stringify(refused, null, 2))
console.log(`wrote ${written} adapters; lowrank refuses ${Object.keys(refused).length}`)
