// The packages that a store needs, which are optional peers.

import { codeOf } from '../../../api/node/parts.js'
import { UnsupportedError } from '../../../core/base/errors.js'

export function notInstalled(name: string, cause?: unknown): UnsupportedError {
  return new UnsupportedError({
    where: 'store',
    what: `the package ${name} is not installed`,
    hint: 'Run npm install libsql@0.5 kysely@0.28',
    cause,
  })
}

/** Loads a module that imports kysely. */
export async function withKysely<Module>(load: () => Promise<Module>): Promise<Module> {
  try {
    return await load()
  } catch (error) {
    const isMissing = codeOf(error) === 'ERR_MODULE_NOT_FOUND' && /'kysely'/.test(String(error))
    throw isMissing ? notInstalled('kysely', error) : error
  }
}
