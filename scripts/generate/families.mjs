// Writes src/model/families/gen/types.ts, which joins the files of that folder. Git ignores it, so that adding a family
// means adding a file. The build makes it, and vitest before the tests.
//
//   node scripts/generate/families.mjs

import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const FOLDER = fileURLToPath(new URL('../../src/model/families', import.meta.url))
const OUT = join(FOLDER, 'gen', 'types.ts')

/** Files without types of models. */
const OTHERS = ['families.ts', 'family.ts', 'heads.ts']

export default function joinFamilies() {
  const names = readdirSync(FOLDER).filter((name) => name.endsWith('.ts') && !OTHERS.includes(name))
  const files = names.sort().map((name) => name.slice(0, -'.ts'.length))
  const variable = (file) => file.replace(/\W/g, '_')
  const text = [
    '// Made by scripts/generate/families.mjs: the types of models of all families.',
    "import type { ModelTypes } from '../family.js'",
    ...files.map((file) => `import { TYPES as ${variable(file)} } from '../${file}.js'`),
    '',
    'export const TYPES: ModelTypes = {',
    ...files.map((file) => `  ...${variable(file)},`),
    '}',
    '',
  ].join('\n')
  if (existsSync(OUT) && readFileSync(OUT, 'utf8') === text) return
  mkdirSync(dirname(OUT), { recursive: true })
  // Another process may be reading the file at this moment, so it is replaced by a rename.
  writeFileSync(`${OUT}.${process.pid}`, text)
  renameSync(`${OUT}.${process.pid}`, OUT)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) joinFamilies()
