// `lowrank/server` in Node, Bun and Deno: the same, with what needs Node.

import '../../node.js'

export * from '../../server.js'
export { folderOfAdapters, type ListenOptions, listen } from './listen.js'
