// Finds optional packages that the user has installed, such as onnxruntime-node and sharp.

import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

/** Options of Node with which the program is a text, and argv[1] is an argument of it. */
const TEXT_OPTION = /^(-e|-p|-pe|--eval|--print)(=|$)/

/** The working directory is never looked in: it may be a downloaded model's folder. */
export function resolvePeer(name: string, from: string): string | undefined {
  const isText = process.execArgv.some((option) => TEXT_OPTION.test(option))
  const program = isText ? undefined : process.argv[1]
  for (const place of [program, from]) {
    try {
      if (place !== undefined) return pathToFileURL(createRequire(place).resolve(name)).href
    } catch {
      // Not seen from here: the next place may have it.
    }
  }
  return undefined
}
