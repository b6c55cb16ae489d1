// Keeps the examples of a training as bytes: the first in memory, and the others in a temporary file.

import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { deserialize, serialize } from 'node:v8'
import { FileError } from '../base/errors.js'
import { withFileErrors } from '../io/node/errors.js'

/** How many bytes stay in memory: 64 MiB. */
const KEPT_BYTES = 1 << 26

export function openExampleFile(keptBytes = KEPT_BYTES) {
  const name = path.join(tmpdir(), `lowrank-examples-${crypto.randomUUID()}`)
  let file: number | undefined
  let [held, length] = [0, 0]
  // These are not inside `write`: closures made there would keep the examples themselves in memory.
  const readerOfBytes = (bytes: Uint8Array) => () => deserialize(bytes) as unknown[]
  const readerOf = (place: number, byteLength: number) => () => {
    const bytes = new Uint8Array(byteLength)
    const count = withFileErrors(name, 'cannot be read', () => readSync(file!, bytes, 0, byteLength, place))
    if (count < byteLength) throw new FileError({ where: name, what: 'it has become shorter' })
    return deserialize(bytes) as unknown[]
  }
  return {
    write(examples: readonly unknown[]) {
      const bytes = serialized(examples)
      if (bytes === undefined) return undefined
      held += bytes.byteLength
      if (held <= keptBytes) return readerOfBytes(bytes)
      const place = length
      withFileErrors(name, 'cannot be written', () => {
        file ??= openNameless(name)
        for (const end = place + bytes.byteLength; length < end; )
          length += writeSync(file, bytes, length - place, end - length, length)
      })
      return readerOf(place, bytes.byteLength)
    },
    close: () => file !== undefined && closeSync(file),
  }
}

/** Opens a file and removes its name at once, so that it disappears when the process ends. */
function openNameless(name: string): number {
  const opened = openSync(name, 'wx+', 0o600)
  unlinkSync(name)
  return opened
}

/** Returns undefined for functions, such as those that read the pictures of a chat again. */
function serialized(examples: readonly unknown[]): Uint8Array | undefined {
  try {
    // A copy, because the serializer's buffer is larger than what it holds.
    return new Uint8Array(serialize(examples))
  } catch {
    return undefined
  }
}
