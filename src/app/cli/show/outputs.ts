// Checks the pages that commands write. A report may only replace a report of the same command.

import { FileError } from '../../../api/index.js'
import { startOfFile, writeWhole } from '../../../api/node/command-line.js'
import { generatorOf } from '../../../api/report/generator.js'
import type { Report } from '../../../api/report/page.js'
import { colors, say } from './terminal.js'

const START_BYTES = 2000

/** Throws FileError if a file exists and is not a page of this command, or may not be replaced. */
export async function refusePage(file: string, mayReplace: boolean, command: string): Promise<void> {
  const start = await startOfFile(file, START_BYTES)
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

export async function writePage(file: string, report: Report, mayReplace: boolean): Promise<void> {
  const { reportPage } = await import('../../../api/report/page.js')
  await writeWhole(file, reportPage(report), !mayReplace)
  say(`Wrote ${colors.bold(file)}`)
}
