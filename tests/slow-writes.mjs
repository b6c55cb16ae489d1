// With --import, slows down each write of the process, so that a test can stop it on the way.
import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'

const { writeSync } = fs
fs.writeSync = (...args) => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20)
  return writeSync(...args)
}
syncBuiltinESMExports()
