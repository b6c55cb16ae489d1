// Checks of places that commands write to themselves.

import { readdir } from 'node:fs/promises'
import { FileError } from '../../index.js'

/** @throws FileError unless the folder is empty or not there yet */
export async function refuseFolder(folder: string): Promise<void> {
  const files = await readdir(folder).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return []
    throw new FileError({ where: folder, what: `cannot be used: ${cause.message}`, cause })
  })
  if (files.length === 0) return
  throw new FileError({
    where: folder,
    what: 'exists already and is not empty',
    got: files.slice(0, 5).join(', '),
    hint: 'Choose another folder',
  })
}
