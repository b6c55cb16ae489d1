// `lowrank/ai-sdk` in Node, Bun and Deno: the same, but sources can be paths.

import '../../api/node.js'

export * from '../ai-sdk.js'
