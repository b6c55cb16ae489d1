// Options and steps that combine, convert, diff and resize share.

import type { ResizeResult, ToolProgress } from '../../../api/index.js'
import { newFolder } from '../../../api/node/command-line.js'
import { counted } from '../../../core/base/errors.js'
import { choice, required, toggle, type Values } from '../options.js'
import { stoppable } from '../show/interrupt.js'
import { colors, peakRssBytes, print, printDocument, say, table, warn } from '../show/terminal.js'

export const ADAPTER_OUTPUT = {
  out: required('DIR', 'folder for the result'),
  outDtype: choice(['fp32', 'fp16', 'bf16', 'keep'], 'type of the factors in the result', 'keep'),
  json: toggle('print one JSON document on stdout'),
}

/** Runs `work`, whose steps are counted on a progress line. */
export function withProgress<T>(
  work: (run: { signal: AbortSignal; on: { progress(progress: ToolProgress): void } }) => Promise<T>,
): Promise<T> {
  return stoppable('Stopping. Nothing is written.', (signal, progress) => {
    return work({ signal, on: { progress: ({ done, total, name }) => progress.update(done, total, `  ${name}`) } })
  })
}

export async function writeAdapter(
  { out, outDtype, json }: Values<typeof ADAPTER_OUTPUT>,
  work: Parameters<typeof withProgress<ResizeResult>>[0],
): Promise<number> {
  const node = await import('../../../api/node.js')
  const folder = await newFolder(out)
  const { adapter, layers, error, warnings } = await withProgress(work)
  await node.saveAdapter(adapter, folder, { dtype: outDtype === 'keep' ? undefined : outDtype })
  if (json) printDocument({ out, layers, error, warnings, peakRssBytes: peakRssBytes() })
  else
    print(
      table([
        ['layer', 'rank before', 'rank after', '‖ΔW‖', 'lost'],
        ...layers.map((layer) => [layer.name, layer.fromRank, layer.rank, layer.norm, layer.error]),
      ]),
    )
  warnings.forEach(warn)
  const ranks = [...new Set(layers.map(({ rank }) => rank))].sort((a, b) => a - b)
  const shown = ranks.length > 1 ? `ranks ${ranks[0]} to ${ranks.at(-1)}` : `rank ${ranks[0]}`
  say(
    `Wrote ${colors.bold(out)}: ${counted(layers.length, 'layer')} of ${shown}, ${(100 * error).toPrecision(3)} % lost`,
  )
  return 0
}
