// Files in the folder of a store. Nobody but the server's user reads them.

import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { WholeOutput } from '../../../api/node/parts.js'

export const PRIVATE = { mode: 0o600 } as const
export const PRIVATE_FOLDER = { mode: 0o700, recursive: true } as const

/** Writes a file that is whole or not there. */
export async function writePrivate(file: string, content: string): Promise<void> {
  const output = await WholeOutput.begin(file)
  try {
    await writeFile(output.made, content, PRIVATE)
    await output.publish(async () => {})
  } finally {
    await output.close()
  }
}

export function newId(prefix: string): string {
  return prefix + randomBytes(12).toString('hex')
}
