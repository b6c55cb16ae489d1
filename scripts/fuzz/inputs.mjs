// Finds the valid files from which inputs are made, in tests/golden and models/.

import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import unpackAll from '../golden/packed.mjs'

export const root = fileURLToPath(new URL('../../', import.meta.url))

unpackAll()
const all = readdirSync(join(root, 'tests/golden'), { recursive: true }).map((name) => name.replaceAll('\\', '/'))
all.sort()

export function read(path) {
  return readFileSync(join(root, path))
}

/** Lists the files of at most 1 MB below tests/golden whose path matches. */
export function filesLike(pattern) {
  const paths = all.filter((name) => pattern.test(name)).map((name) => `tests/golden/${name}`)
  return paths.filter((path) => statSync(join(root, path)).size <= 2 ** 20)
}

/** Lists the folders below tests/golden that contain a file of this name. */
export function foldersWith(file) {
  return filesLike(new RegExp(`(^|/)${file.replaceAll('.', '\\.')}$`)).map((path) => path.slice(0, -file.length - 1))
}

/** Reads the files directly in a folder, by name. */
export function folder(path) {
  const names = readdirSync(join(root, path), { withFileTypes: true }).filter((entry) => entry.isFile())
  return Object.fromEntries(names.map(({ name }) => [name, read(`${path}/${name}`)]))
}
