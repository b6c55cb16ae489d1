// Files that are open in this process, read and written without waiting: straight into and out of the kernel's memory.
// Measured: copying files first and patching them is slower.

import { fstatSync, readSync, writeSync } from 'node:fs'
import type { ByteSink, ByteSource } from '../../core/base/bytes.js'
import { FileError } from '../../core/base/errors.js'
import { withFileErrors } from '../../files/io/node/errors.js'
import type { ChunkSource } from '../weight.js'

export type OpenFile = Required<Pick<ByteSink, 'name' | 'fd'>>

/** A source as threads get it: an open file, or memory that they share. */
export type Readable = OpenFile | { readonly name: string; readonly bytes: Uint8Array }

export async function readableOf(source: ByteSource): Promise<Readable> {
  const { name, fd, byteLength } = source
  if (fd !== undefined) return { name, fd }
  const bytes = new Uint8Array(new SharedArrayBuffer(byteLength))
  bytes.set(await source.read(0, byteLength))
  return { name, bytes }
}

export function readerOf(readable: Readable): ChunkSource {
  if ('bytes' in readable) return { read: (offset, byteLength) => readable.bytes.subarray(offset, offset + byteLength) }
  return { readInto: (offset, memory) => readFully(readable, memory, offset) }
}

/** Reads from `offset` on until the memory is full. */
export function readFully({ name, fd }: OpenFile, memory: Uint8Array, offset: number): void {
  withFileErrors(name, 'cannot be read', () => {
    for (let done = 0; done < memory.byteLength; ) {
      const count = readSync(fd, memory, done, memory.byteLength - done, offset + done)
      if (count === 0) throw new FileError({ where: name, what: 'became shorter while it was being read' })
      done += count
    }
  })
}

export function writeFully({ name, fd }: OpenFile, bytes: Uint8Array, offset: number): void {
  withFileErrors(name, 'cannot be written', () => {
    for (let done = 0; done < bytes.byteLength; ) {
      done += writeSync(fd, bytes, done, bytes.byteLength - done, offset + done)
    }
  })
}

/** Changes when somebody writes to the file. */
export function stampOf({ name, fd }: ByteSource): string {
  if (fd === undefined) return ''
  const { size, mtimeNs } = withFileErrors(name, 'cannot be read', () => fstatSync(fd, { bigint: true }))
  return `${size} ${mtimeNs}`
}
