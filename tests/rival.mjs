// With --import, renames another result to the output's name right before this process does so. RIVAL is two paths with
// a line break between them: the other result, and the name.

import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'

const [from, to] = process.env.RIVAL.split('\n')
let isPublished = false
for (const name of ['rename', 'link']) {
  const call = fs.promises[name]
  fs.promises[name] = async (...args) => {
    if (args[1] === to && !isPublished) {
      isPublished = true
      fs.cpSync(from, to, { recursive: true })
    }
    return call(...args)
  }
}
syncBuiltinESMExports()
