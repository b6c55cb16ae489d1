// Counts the hand-written lines of the product: TypeScript, JavaScript, JSON, CSS and HTML below src, web and
// kernels-asm, without the gen/ folders that scripts write. `--by-folder` lists each folder.
//
//   node scripts/count-lines.mjs [--by-folder]

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const HAND_WRITTEN = /\.(ts|mts|js|mjs|json|css|html)$/

const listed = execFileSync('git', ['ls-files', 'src', 'web', 'kernels-asm'], { cwd: root, encoding: 'utf8' })
const counts = new Map()
let total = 0
for (const path of listed.split('\n')) {
  if (!HAND_WRITTEN.test(path) || path.includes('/gen/')) continue
  const lines = readFileSync(new URL(path, `file://${root}/`), 'utf8').split('\n').length - 1
  counts.set(dirname(path), (counts.get(dirname(path)) ?? 0) + lines)
  total += lines
}

if (process.argv.includes('--by-folder')) {
  for (const [folder, lines] of [...counts].sort()) console.log(`${String(lines).padStart(7)}  ${folder}`)
}
console.log(`${String(total).padStart(7)}  hand-written lines`)
