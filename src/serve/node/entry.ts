// `lowrank/server` in Node, Bun and Deno: the same, with what needs Node.

import '../../api/node.js'

export { type StoredChoice, storedRows } from '../jobs/node/completions.js'
export { type TrainingOptions, trainingIn } from '../jobs/node/training-in.js'
export * from '../server.js'
export { folderOfAdapters } from './adapter-folder.js'
export { hubAdapters } from './hub-adapters.js'
export { type Listening, type ListenOptions, listen } from './listen.js'
