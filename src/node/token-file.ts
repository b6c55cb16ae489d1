// A temporary file for the tokens of a training that do not fit into memory.

import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { FileError } from '../base/errors.js'
import { fileError } from '../io/node/errors.js'

/** Opens a temporary file and removes its name at once, so that it disappears when the process ends. */
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
  // Not inside `write`: a closure made there would keep the written tokens in memory.
  const readerOf = (place: number, byteLength: number) => () =>
    attempt('cannot be read', () => {
      const numbers = new Int32Array(byteLength / 4)
      if (readSync(file, numbers, 0, byteLength, place) === byteLength) return numbers
      throw new FileError({ where: name, what: 'it has become shorter' })
    })
  return {
    write: (numbers: Int32Array) =>
      attempt('cannot be written', () => {
        const place = length
        for (const end = place + numbers.byteLength; length < end; )
          length += writeSync(file, numbers, length - place, end - length, length)
        return readerOf(place, numbers.byteLength)
      }),
    close: () => closeSync(file),
  }
}
