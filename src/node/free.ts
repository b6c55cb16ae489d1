// How much room downloads have: memory, and the disk of the cache.

import { platform } from '../index/platform/platform.js'
import { hubEnvironment } from '../io/hub/node/environment.js'
import { freeBytes } from '../io/node/folders.js'

/** Returns free bytes, or Infinity if the system does not know. */
export function freeForDownloads(): { readonly memory: number; readonly disk: number } {
  const memory = platform().freeMemory?.() ?? Number.POSITIVE_INFINITY
  return { memory, disk: freeBytes(hubEnvironment().cacheFolder) }
}
