// Options and steps of both `merge` and `unmerge`.

import type { MergeProgress, MergeReport, MergeSummary } from '../../../api/index.js'
import { counted } from '../../../core/base/errors.js'
import { flags } from '../flags.js'
import { ADAPTER, type Occurrence, readNumber, repeated, single, toggle, UsageError } from '../options.js'
import { stoppable } from '../show/interrupt.js'
import { bytes, colors, peakRssBytes, printable, printDocument, say, warn } from '../show/terminal.js'

export const ADAPTERS = {
  adapter: {
    ...repeated(ADAPTER, 'adapter: a folder, or an id on the Hub. You can give several: their changes are added'),
    isRequired: true,
  },
  weight: repeated('W', 'strength of the adapter that stands before this option; default 1'),
}

export const OUTPUT = {
  maxShardSize: single('SIZE', 'split the weights into files of at most this size, such as 5GB', readSize),
  ...flags('MergeOptions', ...(['format', 'layout', 'dtype', 'allowMissing', 'weightsOnly', 'threads'] as const)),
  ...flags('MergeOptions', 'overwrite'),
  json: toggle('print one JSON document on stdout'),
}

export const API_NAMES = { maxShardBytes: 'maxShardSize' } as const

export function changesIn({ changed, tensors, branches }: MergeSummary): string {
  const beside =
    branches === undefined ? '' : `, ${counted(branches, 'layer')} with factors beside their quantized weights`
  return `${changed} of ${tensors} tensors changed${beside}`
}

function outcome(report: MergeReport): string {
  const seconds = `${report.seconds.toFixed(1)} s`
  return `Wrote ${colors.bold(report.out)}: ${bytes(report.bytes)}, ${changesIn(report)}, ${seconds}`
}

export async function runMerge<R extends MergeReport>(
  json: boolean,
  work: (run: { signal: AbortSignal; on: { progress(progress: MergeProgress): void } }) => Promise<R>,
  show: (report: R) => void = () => {},
): Promise<number> {
  const report = await stoppable('Stopping. --out does not change.', (signal, progress) => {
    return work({
      signal,
      on: { progress: ({ writtenBytes, totalBytes }) => progress.updateBytes(writtenBytes, totalBytes) },
    })
  })
  if (json) printDocument({ ...(report as MergeReport), peakRssBytes: peakRssBytes() })
  else show(report)
  sayAsides(report)
  say(outcome(report))
  return 0
}

export function sayAsides({ leftOut, warnings, added }: MergeSummary): void {
  if (added.length > 0) say(`New in the result: ${added.map(printable).join(', ')}`)
  warnings.forEach(warn)
  if (leftOut.length > 0) say(`Not copied from the base: ${leftOut.map(printable).join(', ')}`)
}

/** Reads a size: 500MB, 5GB or a number of bytes. Units are decimal, as in transformers. */
function readSize({ flag, value }: Occurrence): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)\s*(KB|MB|GB|TB|B)?$/i.exec(value) ?? []
  const size = Math.floor(Number(number) * 1000 ** ['B', 'KB', 'MB', 'GB', 'TB'].indexOf((unit ?? 'B').toUpperCase()))
  if (number !== undefined && size > 0 && Number.isSafeInteger(size)) return size
  throw new UsageError(`${flag} is a size such as 5GB; got '${value}'`)
}

export function weightedAdapters(occurrences: readonly Occurrence[]): { adapter: string; weight?: number }[] {
  const adapters: { adapter: string; weight?: number }[] = []
  for (const occurrence of occurrences) {
    if (occurrence.flag === '--adapter') adapters.push({ adapter: occurrence.value })
    if (occurrence.flag !== '--weight') continue
    const adapter = adapters.at(-1)
    if (adapter === undefined) throw new UsageError('--weight W comes after the --adapter that it belongs to')
    if (adapter.weight !== undefined) throw new UsageError(`${adapter.adapter} has two weights`)
    adapter.weight = readNumber(occurrence)
  }
  return adapters
}
