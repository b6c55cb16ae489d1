// Reserves the folder of a run: no other training writes there meanwhile, and a run that has lost the folder writes
// nothing more. The code that reads and writes the folder is loaded only for a run that has one, because pages often
// train in memory.

import type { Directory, Reservation } from '../../core/base/bytes.js'
import type { TrainInput } from '../options.js'
import type { RunPlace } from './run-folder.js'

/** The folder that a run is to use; undefined for a run without one. Throws FileError if it may not use it. */
export async function placeOf(options: Pick<TrainInput, 'out' | 'resume' | 'overwrite'>) {
  const { out: directory, resume, overwrite } = options
  if (directory === undefined) return undefined
  const place: RunPlace = { directory, use: resume ? 'resume' : overwrite ? 'overwrite' : 'new' }
  await checkPlace(place)
  return place
}

async function checkPlace({ directory, use }: RunPlace): Promise<void> {
  const { checkRunFolder } = await import('./saved-run.js')
  await checkRunFolder(directory, use)
}

/** Without a place there is nothing to keep others from. */
export async function withRunPlace<T>(
  place: RunPlace | undefined,
  work: (place: RunPlace | undefined) => Promise<T>,
): Promise<T> {
  const reservation = await place?.directory.reserve?.('training')
  if (place === undefined || reservation === undefined) return work(place)
  try {
    // Another one may have ended here meanwhile.
    await checkPlace(place)
    return await work({ ...place, directory: checked(place.directory, reservation) })
  } finally {
    await reservation.release()
  }
}

/** The folder, whose changes are refused once another training has taken it. */
function checked(directory: Directory, reservation: Reservation): Directory {
  const append = directory.append?.bind(directory)
  const afterCheck =
    <Args extends unknown[], T>(work: (...args: Args) => Promise<T>) =>
    async (...args: Args): Promise<T> => {
      await reservation.check()
      return work(...args)
    }
  return {
    name: directory.name,
    list: (folder) => directory.list(folder),
    has: (path) => directory.has(path),
    open: (path) => directory.open(path),
    create: afterCheck((path: string) => directory.create(path)),
    remove: afterCheck((path: string) => directory.remove(path)),
    freeBytes: () => directory.freeBytes?.() ?? Number.POSITIVE_INFINITY,
    ...(append && { append: afterCheck(append) }),
  }
}
