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
  // All groups lie one after the other, the first `inMemory` bytes in memory. Very many groups need no objects so.
  const ends: number[] = []
  let memory = new Uint8Array(1 << 16)
  let inMemory = 0
  const startOf = (group: number) => (group === 0 ? 0 : ends[group - 1])

  function keep(bytes: Uint8Array): void {
    const end = inMemory + bytes.length
    if (end > memory.length) {
      const larger = new Uint8Array(Math.min(2 * end, keptBytes))
      larger.set(memory.subarray(0, inMemory))
      memory = larger
    }
    memory.set(bytes, inMemory)
    inMemory = end
  }

  function append(bytes: Uint8Array, place: number): void {
    withFileErrors(name, 'cannot be written', () => {
      file ??= openNameless(name)
      for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done, bytes.length - done, place + done)
    })
  }

  function readBack(place: number, byteLength: number): Uint8Array {
    const bytes = new Uint8Array(byteLength)
    const count = withFileErrors(name, 'cannot be read', () => readSync(file!, bytes, 0, byteLength, place))
    if (count < byteLength) throw new FileError({ where: name, what: 'it has become shorter' })
    return bytes
  }

  return {
    write(examples: readonly unknown[]): number | undefined {
      const bytes = serialized(examples)
      if (bytes === undefined) return undefined
      const start = startOf(ends.length)
      const end = start + bytes.length
      if (file === undefined && end <= keptBytes) keep(bytes)
      else append(bytes, start - inMemory)
      return ends.push(end) - 1
    },
    read(group: number): unknown[] {
      const [start, end] = [startOf(group), ends[group]]
      const isInMemory = end <= inMemory
      return deserialize(isInMemory ? memory.slice(start, end) : readBack(start - inMemory, end - start)) as unknown[]
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
    return serialize(examples)
  } catch {
    return undefined
  }
}
