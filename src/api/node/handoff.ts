// `lowrank/handoff` in Node, Bun and Deno: the same as in pages, where sources can be paths.

import '../node.js'

export * from '../handoff.js'
