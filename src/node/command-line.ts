// Functions of Node that the command line needs beside the public API.

import path from 'node:path'
import { writeFile } from '../base/bytes.js'
import { NodeDirectory } from '../io/node/files.js'

export { hasStuckWorker } from '../runtime/node/worker.js'

/** Writes a file that appears complete or not at all. Throws FileError when it cannot be written. */
export function writeWhole(file: string, content: string): Promise<void> {
  return writeFile(new NodeDirectory(path.dirname(file)), path.basename(file), content)
}
