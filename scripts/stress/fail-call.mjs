// With --import, lets the n-th call of the file system in a folder fail with a code. FAIL_CALL is `code n folder`. Each
// thread counts its own calls. Calls with a descriptor count, but not the calls by which Node loads modules.

import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'

const [, code, turn, folder] = /^(\w+) (\d+) (.*)$/s.exec(process.env.FAIL_CALL)
let calls = 0

function isTurn(subject) {
  // Node loads modules by URL, so only strings and descriptors count.
  const isOurs = typeof subject === 'string' ? subject.startsWith(folder) : typeof subject === 'number' && subject > 2
  if (!isOurs) return false
  return ++calls === Number(turn)
}

const failure = (name) => Object.assign(new Error(`${code}: injected, ${name}`), { code, syscall: name, errno: -1 })

for (const name of ['openSync', 'readSync', 'writeSync', 'ftruncateSync', 'statfsSync', 'fstatSync']) {
  const call = fs[name]
  fs[name] = (...args) => {
    if (isTurn(args[0])) throw failure(name)
    return call(...args)
  }
}

const NAMES =
  'open readdir readFile rename rm rmdir stat lstat writeFile link mkdir unlink realpath readlink copyFile appendFile'
for (const name of NAMES.split(' ')) {
  const call = fs.promises[name]
  fs.promises[name] = async (...args) => {
    if (isTurn(args[0])) throw failure(name)
    return call(...args)
  }
}

const handle = await fs.promises.open(process.execPath)
const methods = Object.getPrototypeOf(handle)
await handle.close()
for (const name of ['read', 'write', 'sync', 'datasync', 'stat', 'truncate', 'appendFile']) {
  const call = methods[name]
  methods[name] = async function (...args) {
    if (isTurn(this.fd)) throw failure(name)
    return call.apply(this, args)
  }
}
syncBuiltinESMExports()
