// Finds adapters in a folder that the operator names. Callers choose what is read there, so nothing outside is reached.

import { realpath } from 'node:fs/promises'
import path from 'node:path'
import { openTarget } from '../../api/node/parts.js'
import type { Directory, Source } from '../../core/base/bytes.js'
import { FileError } from '../../core/base/errors.js'

/**
 * Finds adapters by the name of their folder inside one folder. Links may not lead out of it: not the adapter's folder,
 * and none of its files. The Hub's cache is one exception: its files are links to `blobs` of the same repository.
 *
 * @param folder the folder that holds the adapters' folders
 *
 * @example
 * import { folderOfAdapters } from 'lowrank/server'
 *
 * const resolveAdapter = folderOfAdapters('tests/golden/peft')
 * console.log((await resolveAdapter('f32')) !== undefined, await resolveAdapter('../../models'))
 */
export function folderOfAdapters(folder: string): (name: string) => Promise<Source | undefined> {
  return async (name) => {
    try {
      const root = await realpath(folder)
      const found = await realpath(path.resolve(root, name))
      return isInside(found, root) ? inside(root, found) : undefined
    } catch {
      return undefined
    }
  }
}

const isInside = (target: string, folder: string) => target.startsWith(folder + path.sep)

/** The blobs of a repository in the Hub's cache: `models--org--name/snapshots/COMMIT` links to `…/blobs`. */
function blobsOf(folder: string): string | undefined {
  const [repository] = /^.*[\\/]models--[^\\/]+(?=[\\/]snapshots[\\/])/.exec(folder) ?? []
  return repository && path.join(repository, 'blobs')
}

/** Looks where a link leads before each file is opened. Its name is the adapter's place below `root`. */
function inside(root: string, folder: string): Directory {
  const directory = openTarget(folder, 'folder')
  const name = path.relative(root, folder)
  const blobs = blobsOf(folder)
  const require = async (file: string) => {
    const target = await realpath(path.join(folder, file)).catch(() => undefined)
    if (target === undefined || isInside(target, root) || (blobs !== undefined && isInside(target, blobs))) return
    throw new FileError({ where: `${name}/${file}`, what: 'a link that leads out of the folder of adapters' })
  }
  return {
    name,
    list: (inner) => directory.list(inner),
    folders: async () => (await directory.folders?.()) ?? [],
    has: (file) => directory.has(file),
    async open(file) {
      await require(file)
      return directory.open(file)
    },
    create: (file) => directory.create(file),
    remove: (file) => directory.remove(file),
  }
}
