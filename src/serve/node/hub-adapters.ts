// Finds adapters on the Hub for callers who may load them. Only public ones are found: the server's token is not sent.

import { openFolder } from '../../api/node/parts.js'
import { ConfigError, FileError } from '../../core/base/errors.js'
import type { ResolveAdapter } from '../adapters.js'

/**
 * Finds adapters in the public repositories of one owner on the Hub. They are downloaded by `/v1/load_lora_adapter`
 * alone. `/v1/models` shows their commit.
 *
 * @param pattern such as `hub:ORG/*`, or `hub:ORG/NAME` for one repository
 * @param maxBytes the most bytes that are downloaded for one adapter. Default 1 GiB
 * @throws ConfigError for another pattern
 *
 * @example
 * import { hubAdapters } from 'lowrank/server'
 *
 * const resolveAdapter = hubAdapters('hub:my-team/*')
 * console.log(await resolveAdapter('someone/else', { mayDownload: true }))
 */
export function hubAdapters(pattern: string, maxBytes = 2 ** 30): ResolveAdapter {
  const [, owner, name] = /^hub:([\w.-]+)\/(\*|[\w.-]+)$/.exec(pattern) ?? []
  if (owner === undefined) {
    throw new ConfigError({ where: 'pattern', what: 'not valid', expected: 'hub:ORG/* or hub:ORG/NAME', got: pattern })
  }
  return async (asked, { mayDownload }) => {
    const [, repository] = /^(?:hf:)?([\w.-]+\/[\w.-]+)(?:@[\w.-]+)?$/.exec(asked) ?? []
    const isAllowed = name === '*' ? repository?.startsWith(`${owner}/`) : repository === `${owner}/${name}`
    if (!mayDownload || !isAllowed) return undefined
    const sizes = new Map<string, number>()
    const onDownload = (file: { readonly name: string; readonly byteLength: number }) => {
      sizes.set(file.name, file.byteLength)
      const total = [...sizes.values()].reduce((sum, size) => sum + size, 0)
      if (total <= maxBytes) return
      throw new FileError({ where: asked, what: 'too large', expected: `at most ${maxBytes} bytes`, got: `${total}` })
    }
    return openFolder(`hf:${asked.replace(/^hf:/, '')}`, 'adapter', { token: '', onDownload })
  }
}
