// Where an inspection's page goes: it appears complete or not at all, and replaces nothing but another such page.

import path from 'node:path'
import { FileError } from '../../index.js'
import { NodeDirectory } from '../../node.js'
import { GENERATOR } from './page.js'

/** As far as the start of a page is looked at. */
const START_BYTES = 2000

/**
 * @throws FileError when the file is there, and is no page or may not be replaced
 */
export async function refusePage(file: string, mayReplace: boolean): Promise<void> {
  const [folder, name] = placeOf(file)
  if (!(await folder.has(name))) return
  if (!mayReplace) {
    throw new FileError({ where: file, what: 'exists already', hint: 'Choose another place, or use --overwrite' })
  }
  const source = await folder.open(name)
  try {
    const start = await source.read(0, Math.min(START_BYTES, source.byteLength))
    if (new TextDecoder().decode(start).includes(GENERATOR)) return
  } finally {
    await source.close()
  }
  throw new FileError({
    where: file,
    what: 'not overwritten, because it is no page of lowrank inspect',
    hint: 'Choose another place',
  })
}

export async function writePage(file: string, html: string): Promise<void> {
  const [folder, name] = placeOf(file)
  const sink = await folder.create(name)
  try {
    await sink.write(new TextEncoder().encode(html))
    await sink.commit()
  } catch (error) {
    await sink.abort()
    throw error
  }
}

function placeOf(file: string): [folder: NodeDirectory, name: string] {
  return [new NodeDirectory(path.dirname(file)), path.basename(file)]
}
