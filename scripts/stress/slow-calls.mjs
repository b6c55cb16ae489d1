// With --import, slows down writes, renames and removals, so that processes interfere in the middle of them.

import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'

const DELAY_MS = 10
const { writeSync } = fs
fs.writeSync = (...args) => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, DELAY_MS)
  return writeSync(...args)
}
for (const name of ['rename', 'rm', 'rmdir']) {
  const call = fs.promises[name]
  fs.promises[name] = async (...args) => {
    await new Promise((resolve) => setTimeout(resolve, DELAY_MS))
    return call(...args)
  }
}
syncBuiltinESMExports()
