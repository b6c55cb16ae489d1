// `lowrank/server` in Node, Bun and Deno: the same, with what needs Node.

import '../../node.js'

export * from '../../server.js'
export { folderOfAdapters } from './adapter-folder.js'
export { type Listening, type ListenOptions, listen, requirePort } from './listen.js'
