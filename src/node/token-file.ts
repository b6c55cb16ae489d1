// Tokens of a training that memory has no room for.

import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { FileError } from '../base/errors.js'
import { fileError } from '../io/node/errors.js'

/** A file without a name, in the folder for temporary files: it is gone with the process at the latest. */
export function openTokenFile() {
  const name = path.join(tmpdir(), `lowrank-tokens-${crypto.randomUUID()}`)
  const attempt = <T>(action: string, call: () => T): T => {
    try {
      return call()
    } catch (error) {
      throw fileError(name, action, error)
    }
  }
  const file = attempt('cannot be written', () => {
    const opened = openSync(name, 'wx+', 0o600)
    unlinkSync(name)
    return opened
  })
  let length = 0
  return {
    write: (tokens: Int32Array): number =>
      attempt('cannot be written', () => {
        const place = length
        for (const end = place + tokens.byteLength; length < end; )
          length += writeSync(file, tokens, length - place, end - length, length)
        return place
      }),
    read: (place: number, into: Int32Array): void =>
      attempt('cannot be read', () => {
        if (readSync(file, into, 0, into.byteLength, place) === into.byteLength) return
        throw new FileError({ where: name, what: 'it has become shorter' })
      }),
    close: () => closeSync(file),
  }
}
