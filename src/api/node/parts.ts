// `lowrank/parts` in Node, Bun and Deno: the same, with what keeps files and folders whole.

import '../node.js'

export { type Line, textLines } from '../../files/data/text-chunks.js'
export { codeOf, fileError, withFileErrors } from '../../files/io/node/errors.js'
export { openFile } from '../../files/io/node/files.js'
export { reserveFolder } from '../../files/io/node/reserve.js'
export { isUnfinishedWork, removeWritten, WholeOutput } from '../../files/io/node/whole-output.js'
export * from '../parts/entry.js'
