#!/usr/bin/env node
// The `lowrank` binary. It loads the rest of the program, and says so if the system allows too few open files for that.

try {
  await import('./entry.js')
} catch (error) {
  const { code, message } = error as NodeJS.ErrnoException
  const isLimited = ['EMFILE', 'ENFILE', 'ERR_MODULE_NOT_FOUND'].includes(code ?? '')
  const hint = isLimited ? ' Raise the limit of open files (ulimit -n 1024), or install lowrank again.' : ''
  process.stderr.write(`error: lowrank cannot be loaded: ${message}.${hint}\n`)
  process.exitCode = 1
}

export {}
