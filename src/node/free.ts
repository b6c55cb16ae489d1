// Room for what is downloaded: memory, and the disk of the cache.

import { platform } from '../index/platform/platform.js'
import { hubEnvironment } from '../io/hub/node/environment.js'
import { freeBytes } from '../io/node/folders.js'

/** Free bytes; Infinity where the system does not know. */
export function freeForDownloads(): { readonly memory: number; readonly disk: number } {
  const memory = platform().freeMemory?.() ?? Number.POSITIVE_INFINITY
  return { memory, disk: freeBytes(hubEnvironment().cacheFolder) }
}
