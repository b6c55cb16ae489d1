// The public API in Node, Bun and Deno: the same as everywhere, where strings can be paths and sessions run in worker
// threads.

import { usePathMerging } from './index/platform/path-merging.js'
import { usePlatform } from './index/platform/platform.js'
import { nodePlatform } from './node/platform.js'

usePlatform(nodePlatform)
usePathMerging(async () => (await import('./merge/node/job.js')).openPathJob)

export * from './index.js'
