// Keeps the examples of a training as bytes in a temporary file. If memory is free, the system keeps the file there.

import { closeSync, openSync, unlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { deserialize, serialize } from 'node:v8'
import { readFully, writeFully } from '../../merge/node/open-files.js'

export function openExampleFile() {
  const name = path.join(tmpdir(), `lowrank-examples-${crypto.randomUUID()}`)
  let file: number | undefined
  // The groups lie one after the other. Their ends are all that is kept of them, so that very many need no objects.
  const ends: number[] = []
  const startOf = (group: number) => (group === 0 ? 0 : ends[group - 1])

  /**
   * Returns undefined if the examples have functions, such as those that read a chat's pictures again, or if no file
   * can be made.
   */
  function serialized(examples: readonly unknown[]): Uint8Array | undefined {
    try {
      file ??= openNameless(name)
      return serialize(examples)
    } catch {
      return undefined
    }
  }

  return {
    write(examples: readonly unknown[]): number | undefined {
      const bytes = serialized(examples)
      if (bytes === undefined) return undefined
      const start = startOf(ends.length)
      writeFully({ name, fd: file! }, bytes, start)
      return ends.push(start + bytes.length) - 1
    },
    read(group: number): unknown[] {
      const start = startOf(group)
      const bytes = new Uint8Array(ends[group] - start)
      readFully({ name, fd: file! }, bytes, start)
      return deserialize(bytes) as unknown[]
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
