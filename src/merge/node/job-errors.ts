// Errors of a merge into a path, and hints for them.

import path from 'node:path'
import { ConfigError, FileError, MismatchError } from '../../base/errors.js'
import type { MergeBase } from '../format.js'

export function mountedError(out: string): FileError {
  return new FileError({
    where: out,
    what: 'a file system is mounted here, so the finished output cannot get this name',
    hint: `Choose a folder in it, such as ${path.join(out, 'merged')}`,
  })
}

export function severalFilesError(out: string, files: number): ConfigError {
  if (files <= 1)
    return new ConfigError({
      where: out,
      what: 'one file has no shares',
      hint: 'Choose a folder, or leave out `share`',
    })
  return new ConfigError({
    where: out,
    what: `the output has ${files} files, so it needs a folder`,
    hint: 'Choose a folder, or a larger `maxShardBytes`',
  })
}

/** The error; where a base is one file of several, with what to do about that. */
export function withShardHint(error: unknown, { file = '' }: MergeBase): unknown {
  const isMissing = error instanceof MismatchError && error.where === 'adapter'
  if (!isMissing || !/-\d{5}-of-\d{5}\.safetensors$/.test(file)) return error
  const { where, what, expected } = error
  const hint = 'The base is one of several files: give their folder'
  return new MismatchError({ where, what, expected, hint, cause: error })
}

/** The error, with what can be done about a full disk or is left to go on with. */
export function withHint(error: unknown, isLeft: boolean): unknown {
  if (!(error instanceof FileError)) return error
  const { where, what, expected, got, hint, cause } = error
  const code = (cause as NodeJS.ErrnoException | undefined)?.code ?? ''
  const kept = isLeft ? 'The finished files are kept: give the same command again to go on' : undefined
  const room = isLeft
    ? 'The finished files are kept: make room, then give the same command again'
    : 'Make room, or choose another disk'
  const isFull = ['ENOSPC', 'EDQUOT'].includes(code)
  const isLimited = ['EMFILE', 'ENFILE'].includes(code)
  const files = 'Raise the limit of open files (ulimit -n), or take fewer threads'
  const advice = isFull ? room : isLimited ? files : (hint ?? kept)
  return new FileError({ where, what, expected, got, hint: advice, cause })
}
