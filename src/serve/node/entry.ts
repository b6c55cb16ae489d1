// `lowrank/server` in Node, Bun and Deno: the same, with what needs Node.

import '../../api/node.js'

export type { StoredChoice } from '../jobs/node/completions.js'
export { trainingIn } from '../jobs/node/training-in.js'
export type { TrainingOptions } from '../jobs/node/training-options.js'
export * from '../server.js'
export { backUpStore, checkStore, exportStore, restoreStore, storedRows } from '../store/node/beside.js'
export type { Exported } from '../store/node/verbs.js'
export { folderOfAdapters } from './adapter-folder.js'
export { hubAdapters } from './hub-adapters.js'
export { type Listening, type ListenOptions, listen } from './listen.js'
