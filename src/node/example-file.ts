// A temporary file for the examples of a training that do not fit into memory.

import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { deserialize, serialize } from 'node:v8'
import { FileError } from '../base/errors.js'
import { withFileErrors } from '../io/node/errors.js'

/** Opens a temporary file and removes its name at once, so that it disappears when the process ends. */
export function openExampleFile() {
  const name = path.join(tmpdir(), `lowrank-examples-${crypto.randomUUID()}`)
  const file = withFileErrors(name, 'cannot be written', () => {
    const opened = openSync(name, 'wx+', 0o600)
    unlinkSync(name)
    return opened
  })
  let length = 0
  // Not inside `write`: a closure made there would keep the written examples in memory.
  const readerOf = (place: number, byteLength: number) => () => {
    const bytes = new Uint8Array(byteLength)
    const count = withFileErrors(name, 'cannot be read', () => readSync(file, bytes, 0, byteLength, place))
    if (count < byteLength) throw new FileError({ where: name, what: 'it has become shorter' })
    return deserialize(bytes) as unknown[]
  }
  return {
    write(examples: readonly unknown[]) {
      const bytes = serialized(examples)
      if (bytes === undefined) return undefined
      const place = length
      withFileErrors(name, 'cannot be written', () => {
        for (const end = place + bytes.byteLength; length < end; )
          length += writeSync(file, bytes, length - place, end - length, length)
      })
      return readerOf(place, bytes.byteLength)
    },
    close: () => closeSync(file),
  }
}

/** Returns undefined for functions, such as those that read the pictures of a chat again. */
function serialized(examples: readonly unknown[]): Uint8Array | undefined {
  try {
    return serialize(examples)
  } catch {
    return undefined
  }
}
