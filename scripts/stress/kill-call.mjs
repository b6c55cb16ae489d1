// With --import, kills the process before its n-th change in a folder. KILL_CALL is `n folder`. A process that reaches
// its end prints how many changes it made. Changes by worker threads do not count.

import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { isMainThread } from 'node:worker_threads'

const [, turn, folder] = /^(\d+) (.*)$/s.exec(process.env.KILL_CALL)
let calls = 0

function count(subject) {
  const isOurs = typeof subject === 'string' ? subject.startsWith(folder) : typeof subject === 'number' && subject > 2
  if (isOurs && ++calls === Number(turn)) process.kill(process.pid, 'SIGKILL')
}

if (isMainThread) {
  for (const name of ['openSync', 'writeSync']) {
    const call = fs[name]
    fs[name] = (...args) => {
      count(args[0])
      return call(...args)
    }
  }
  for (const name of ['open', 'rename', 'rm', 'rmdir', 'writeFile', 'link', 'mkdir', 'unlink']) {
    const call = fs.promises[name]
    fs.promises[name] = async (...args) => {
      count(args[name === 'rename' || name === 'link' ? 1 : 0])
      return call(...args)
    }
  }
  const handle = await fs.promises.open(process.execPath)
  const methods = Object.getPrototypeOf(handle)
  await handle.close()
  const { write } = methods
  methods.write = async function (...args) {
    count(this.fd)
    return write.apply(this, args)
  }
  syncBuiltinESMExports()
  process.on('exit', () => console.error(`changes: ${calls}`))
}
