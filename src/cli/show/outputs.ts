// Places that commands write to themselves. A report replaces nothing but a report of the same command.

import { type FileHandle, open } from 'node:fs/promises'
import { FileError } from '../../index.js'
import { writeWhole } from '../../node/command-line.js'
import { generatorOf } from '../../report/generator.js'
import type { Report } from '../../report/page.js'
import { colors, say } from './terminal.js'

const START_BYTES = 2000

/** Throws FileError for a file that is no page of this command, or may not be replaced. */
export async function refusePage(file: string, mayReplace: boolean, command = 'inspect'): Promise<void> {
  const start = await startOf(file)
  if (start === undefined) return
  if (!mayReplace) {
    throw new FileError({ where: file, what: 'exists already', hint: 'Choose another file, or use --overwrite' })
  }
  if (start.includes(generatorOf(command))) return
  throw new FileError({
    where: file,
    what: `not overwritten, because lowrank ${command} did not write it`,
    hint: 'Choose another place',
  })
}

export async function writePage(file: string, report: Report): Promise<void> {
  const { reportPage } = await import('../../report/page.js')
  await writeWhole(file, reportPage(report))
  say(`Wrote ${colors.bold(file)}`)
}

async function startOf(file: string): Promise<string | undefined> {
  let handle: FileHandle | undefined
  try {
    handle = await open(file)
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(START_BYTES), 0, START_BYTES, 0)
    return buffer.toString('utf8', 0, bytesRead)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw new FileError({ where: file, what: `cannot be read: ${message}`, cause })
  } finally {
    await handle?.close()
  }
}
