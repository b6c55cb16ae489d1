// A run's folder while the run has it: no other training writes there, and a run that lost it writes nothing more.

import type { Directory, Reservation } from '../../base/bytes.js'
import { checkRunFolder, type FolderUse } from './run-folder.js'

export interface RunPlace {
  directory: Directory
  use: FolderUse
}

export async function withRunPlace<T>(place: RunPlace, work: (place: RunPlace) => Promise<T>): Promise<T> {
  const reservation = await place.directory.reserve?.('training')
  if (reservation === undefined) return work(place)
  try {
    // Another one may have ended here meanwhile.
    await checkRunFolder(place.directory, place.use)
    return await work({ ...place, directory: checked(place.directory, reservation) })
  } finally {
    await reservation.release()
  }
}

/** The folder, whose changes are refused once another training has taken it. */
function checked(directory: Directory, reservation: Reservation): Directory {
  const append = directory.append?.bind(directory)
  return {
    name: directory.name,
    list: (folder) => directory.list(folder),
    has: (path) => directory.has(path),
    open: (path) => directory.open(path),
    async create(path) {
      await reservation.check()
      return directory.create(path)
    },
    async remove(path) {
      await reservation.check()
      await directory.remove(path)
    },
    ...(append && {
      async append(path: string, bytes: Uint8Array) {
        await reservation.check()
        await append(path, bytes)
      },
    }),
  }
}
