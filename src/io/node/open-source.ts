// Opens in Node what a string names: a path, a model on the Hub, or a URL.

import { existsSync } from 'node:fs'
import path from 'node:path'
import type { Directory } from '../../base/bytes.js'
import { HubDirectory } from '../hub/directory.js'
import { hubEnvironment } from '../hub/node/environment.js'
import { type OpenHubOptions, openHub } from '../hub/node/open-hub.js'
import { openUrlFolder } from '../hub/node/open-url.js'
import { type Located, locateAtUrl, locateGraph, locateInHub } from '../locate.js'
import { parseSource } from '../source.js'
import { UrlDirectory } from '../url-directory.js'
import { locate, NodeDirectory } from './files.js'

/**
 * Opens a source. Of what is not on this machine, files come when they are opened, and are kept.
 *
 * @param where the argument that holds the text, for messages
 * @throws ConfigError when the text names nothing; FileError when there is nothing, or the server gives nothing
 */
export async function openText(text: string, where: string, options: OpenHubOptions = {}): Promise<Located> {
  const endpoint = options.endpoint ?? hubEnvironment(options.variables).endpoint
  const source = parseSource(text, { where, exists: existsSync, endpoint })
  if (source.kind === 'path') return locatePath(source.path)
  if (source.kind === 'url') return locateAtUrl(openUrlFolder(source.url, options))
  return locateInHub(await openHub(source, options))
}

async function locatePath(target: string): Promise<Located> {
  const { directory, file } = await locate(target)
  if (file === undefined) return { directory, file }
  const around = new NodeDirectory(path.join(directory.name, '..'))
  return locateGraph(directory, file, { directory: around, name: path.basename(path.resolve(directory.name)) })
}

/**
 * Brings files onto this machine.
 *
 * @returns the path of the folder that holds them; undefined for folders that are in no file system
 * @throws FileError when one does not come
 */
export async function bringFiles(directory: Directory, paths: Iterable<string>): Promise<string | undefined> {
  if (directory instanceof NodeDirectory) return directory.name
  if (!(directory instanceof HubDirectory || directory instanceof UrlDirectory)) return undefined
  for (const file of paths) await (await directory.open(file)).close()
  return directory.localFolder
}
