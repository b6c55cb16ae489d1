// Opens in Node what a string names: a path, a model on the Hub, or a URL.

import { existsSync } from 'node:fs'
import path from 'node:path'
import type { Place } from '../../../core/base/bytes.js'
import { hubEnvironment } from '../hub/node/environment.js'
import { type OpenHubOptions, openHub, openUrlFolder } from '../hub/node/open-hub.js'
import { locateAtUrl, locateGraph, locateInHub } from '../locate.js'
import { parseSource } from '../source.js'
import { localPath, locate, NodeDirectory } from './files.js'

export async function openText(given: string, where: string, options: OpenHubOptions = {}): Promise<Place> {
  const text = /^file:/i.test(given) ? localPath(given, where) : given
  // A path can be opened even if the settings for the Hub are not valid.
  const isAddress = /^https?:/i.test(text)
  const endpoint = isAddress ? (options.endpoint ?? hubEnvironment(options.variables).endpoint) : undefined
  const source = parseSource(text, { where, exists: existsSync, endpoint })
  if (source.kind === 'path') return locatePath(source.path)
  if (source.kind === 'url') return locateAtUrl(openUrlFolder(source.url, options))
  return locateInHub(await openHub(source, options))
}

async function locatePath(target: string): Promise<Place> {
  const { directory, file } = await locate(target)
  if (file === undefined) return { directory, file }
  const around = new NodeDirectory(path.join(directory.name, '..'))
  return locateGraph(directory, file, { directory: around, name: path.basename(path.resolve(directory.name)) })
}
