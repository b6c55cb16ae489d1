// Opens in Node what a string names: a path, a model on the Hub, or a URL.

import { existsSync } from 'node:fs'
import { hubEnvironment } from '../hub/node/environment.js'
import { type OpenHubOptions, openHub } from '../hub/node/open-hub.js'
import { openUrlFolder } from '../hub/node/open-url.js'
import { type Located, locateAtUrl, locateInHub } from '../locate.js'
import { parseSource } from '../source.js'
import { locate } from './files.js'

/** How sources are opened that are not on this machine. */
export type OpenSourceOptions = OpenHubOptions

/**
 * Opens a source. Of what is not on this machine, files come when they are opened, and are kept.
 *
 * @param where the argument that holds the text, for messages
 * @throws ConfigError when the text names nothing; FileError when there is nothing, or the server gives nothing
 */
export async function openText(text: string, where: string, options: OpenSourceOptions = {}): Promise<Located> {
  const { endpoint } = hubEnvironment(options.variables)
  const source = parseSource(text, { where, exists: existsSync, endpoint })
  if (source.kind === 'path') return locate(source.path)
  if (source.kind === 'url') return locateAtUrl(openUrlFolder(source.url, options))
  return locateInHub(await openHub(source, options))
}
