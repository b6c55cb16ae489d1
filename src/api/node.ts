// The public API in Node, Bun and Deno. It is the same as in browsers, except that strings can be paths and sessions
// run in worker threads.

import { nodePlatform } from './node/platform.js'
import { usePlatform } from './platform/platform.js'

usePlatform(nodePlatform)

export * from './index.js'
