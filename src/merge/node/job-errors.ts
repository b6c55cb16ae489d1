// What a merge into a path says when it fails.

import { ConfigError, FileError, listed, MismatchError } from '../../base/errors.js'
import type { MergeBase } from '../format.js'
import type { OutputFile } from '../plan/layout.js'

export function unfinishedError(missing: readonly OutputFile[], own: readonly OutputFile[], folder: string): FileError {
  return new FileError({
    where: folder,
    what: `${missing.length} of ${own.length} files are missing, damaged or made from another base: ${listed(missing.map(({ path: name }) => name))}`,
    hint: 'Run these jobs again (share, --shards), and then finish (--finish)',
  })
}

export function severalFilesError(out: string, files: number): ConfigError {
  return new ConfigError({
    where: out,
    what: `the output has ${files} files, so it needs a folder`,
    hint: 'Choose a folder, or a larger maxShardBytes (--max-shard-size)',
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
  const room = isLeft
    ? 'The finished files are kept: make room, then go on with resume: true (--resume)'
    : 'Make room, or choose another disk'
  const isFull = ['ENOSPC', 'EDQUOT'].includes(code)
  const isLimited = ['EMFILE', 'ENFILE'].includes(code)
  const files = 'Raise the limit of open files (ulimit -n), or take fewer threads'
  const advice = isFull
    ? room
    : isLimited
      ? files
      : (hint ?? (isLeft ? 'The finished files are kept: resume: true (--resume) goes on' : undefined))
  return new FileError({ where, what, expected, got, hint: advice, cause })
}
