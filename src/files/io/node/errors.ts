// Turns errors of node:fs into errors of lowrank.

import { isAbsolute } from 'node:path'
import { FileError, messageOf } from '../../../core/base/errors.js'

export const REASONS: Record<string, string> = {
  ENOENT: 'no such file or folder',
  ENOTDIR: 'a part of the path is no folder',
  EACCES: 'permission denied',
  EPERM: 'permission denied',
  EEXIST: 'something else is there',
  EISDIR: 'is a folder',
  ENOSPC: 'no space left on the device',
  EDQUOT: 'disk quota exceeded',
  EROFS: 'the file system is read-only',
  EMFILE: 'too many open files',
  ENAMETOOLONG: 'the name is too long',
  ELOOP: 'too many symbolic links',
}

export const HINTS: Record<string, string> = {
  EACCES: 'Choose a folder that you may use, or change its permissions',
  EPERM: 'Choose a folder that you may use, or change its permissions',
  ENOSPC: 'Make room, or choose another disk',
  EDQUOT: 'Make room, or choose another disk',
  EROFS: 'Choose a folder on another disk',
  EMFILE: 'Raise the limit of open files (ulimit -n)',
}

/** An error of node:fs as ours; `action` is one clause, such as `cannot be written`. */
export function fileError(where: string, action: string, error: unknown): FileError {
  if (error instanceof FileError) return error
  const code = codeOf(error)
  if (code === 'ENOENT' && action === 'cannot be read') {
    const hint = isAbsolute(where) ? undefined : `Relative paths start in ${process.cwd()}`
    return new FileError({ where, what: 'no such file or folder', ...(hint && { hint }), cause: error })
  }
  const reason = REASONS[code ?? ''] ?? messageOf(error)
  const hint = HINTS[code ?? '']
  return new FileError({ where, what: `${action}: ${reason}`, ...(hint && { hint }), cause: error })
}

/** Gives what `work` gives, now or as a promise. Its errors become ours. */
export function withFileErrors<T>(where: string, action: string, work: () => T): T {
  const fail = (error: unknown): never => {
    throw fileError(where, action, error)
  }
  try {
    const result = work()
    return result instanceof Promise ? (result.catch(fail) as T) : result
  } catch (error) {
    return fail(error)
  }
}

export function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException | undefined)?.code
}
