// Links in a base's folder: what they lead to is copied into what people upload, so that none may lead out of the
// folder. In the Hub's cache all files are links to blobs beside the folder; those are the repository's own.

import { readdir, realpath } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../../base/errors.js'
import { fileError } from '../../io/node/errors.js'
import { isCompanion, isCompanionFolder } from '../plan/companions.js'

/**
 * @param folder of the base
 * @param copied names of the files that go along
 * @throws FileError for a link among them that leads nowhere or out of the folder
 */
export async function refuseForeignLinks(folder: string, copied: readonly string[]): Promise<void> {
  const real = await realpath(folder)
  const names = new Set([...(await linksIn(real)), ...copied])
  for (const name of names) {
    const file = path.join(real, name)
    const target = await realpath(file).catch(() => undefined)
    if (target === undefined) throw brokenLinkError(path.join(folder, name))
    if (!isInside(target, real) && !isInside(target, blobsOf(real)))
      throw foreignLinkError(path.join(folder, name), target)
  }
}

/** Links that would go along if they led to files. */
async function linksIn(real: string): Promise<string[]> {
  try {
    const entries = await readdir(real, { withFileTypes: true })
    const links = entries.filter((entry) => entry.isSymbolicLink()).map(({ name }) => name)
    return links.filter((name) => isCompanion(name) || isCompanionFolder(name))
  } catch (error) {
    throw fileError(real, 'cannot be listed', error)
  }
}

/** The folder that a snapshot of the Hub's cache links to; undefined for other folders. */
function blobsOf(real: string): string | undefined {
  const parts = real.split(path.sep)
  const at = parts.lastIndexOf('snapshots')
  return at > 0 && at < parts.length - 1 ? [...parts.slice(0, at), 'blobs'].join(path.sep) : undefined
}

function isInside(target: string, folder: string | undefined): boolean {
  if (folder === undefined) return false
  const relative = path.relative(folder, target)
  return !relative.startsWith('..') && !path.isAbsolute(relative)
}

function foreignLinkError(where: string, target: string): FileError {
  return new FileError({
    where,
    what: 'a link that leads out of the folder of the base',
    got: target,
    hint: 'Put the file itself there, or merge the weights alone: `weightsOnly: true`',
  })
}

function brokenLinkError(where: string): FileError {
  return new FileError({
    where,
    what: 'this link points to a place that does not exist',
    expected: 'a file that goes along with the weights',
    hint: 'Download it again, or remove the link',
  })
}
