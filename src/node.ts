// The public API in Node, Bun and Deno: the same as everywhere, where strings can be paths and sessions run in worker
// threads.

import { usePlatform } from './index/platform/platform.js'
import { nodePlatform } from './node/platform.js'

usePlatform(nodePlatform)

export * from './index.js'
