// Finds optional packages that the user has installed, such as onnxruntime-node and sharp.

import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

/** Options with which Node runs a text, so that argv[1] is not a file but the text's first argument. */
const TEXT_OPTION = /^(-e|-p|-pe|--eval|--print)(=|$)/

/**
 * Returns the URL of an installed package, as seen from the running program or else from `from`. Never looks in the
 * working directory, which may be the folder of a downloaded model.
 */
export function resolvePeer(name: string, from: string): string | undefined {
  const isText = process.execArgv.some((option) => TEXT_OPTION.test(option))
  const program = isText ? undefined : process.argv[1]
  for (const place of [program, from]) {
    try {
      if (place !== undefined) return pathToFileURL(createRequire(place).resolve(name)).href
    } catch {
      // It is not installed here, but perhaps in the next place.
    }
  }
  return undefined
}
