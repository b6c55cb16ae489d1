// Merging and unmerging, into a path or a folder.

import type { Directory } from '../core/base/bytes.js'
import { checkOptions } from '../core/base/options.js'
import type { RemoteOptions } from '../files/io/hub/directory.js'
import { LoraAdapter } from '../lora/adapter.js'
import * as verbs from '../merge/merge.js'
import type { MergePlanReport, MergeReport } from '../merge/merge-report.js'
import { refuseWithoutPath } from '../merge/settings.js'
import { SOURCE } from '../model/source-values.js'
import { weightedAdapter } from './adapters.js'
import { otherBaseOf } from './base-name.js'
import { MERGE_OPTIONS, UNMERGE_OPTIONS } from './gen/options.js'
import type { AdapterToMerge, MergeOptions, UnmergeOptions } from './merge-options.js'
import { platform } from './platform/platform.js'
import { openSource, openTarget } from './sources.js'

export async function merge(options: MergeOptions): Promise<MergeReport> {
  checkOptions(options, 'merge', MERGE_OPTIONS)
  const open = await jobFor(options)
  // A merge into a folder reads each byte of the base once, so a remote base can be read in ranges and need not be
  // kept.
  const { warnings, ...opened } = await openAll(options, { readsRanges: open === undefined })
  const report = await verbs.merge({ ...options, ...opened, ...watching(options), out: targetOf(options, open) }, open)
  return { ...report, warnings: [...report.warnings, ...warnings] }
}

export async function planMerge(options: MergeOptions): Promise<MergePlanReport> {
  checkOptions(options, 'planMerge', MERGE_OPTIONS)
  const open = await jobFor(options)
  const { warnings, ...opened } = await openAll(options, { readsRanges: true })
  const report = await verbs.planMerge({ ...options, ...opened, out: targetOf(options, open) }, open)
  return { ...report, warnings: [...report.warnings, ...warnings] }
}

export async function unmerge(options: UnmergeOptions): Promise<MergeReport> {
  checkOptions(options, 'unmerge', UNMERGE_OPTIONS)
  const open = await jobFor(options)
  const given = { ...options, base: options.merged }
  const { base, adapters } = await openAll(given, { readsRanges: open === undefined })
  return verbs.merge({ ...options, ...watching(options), base, adapters, sign: -1, out: targetOf(options, open) }, open)
}

const watching = ({ on = platform().watchMerge?.() }: Pick<MergeOptions, 'on'>) => ({ on })

async function jobFor({ out }: Pick<MergeOptions, 'out'>): Promise<verbs.OpenJob | undefined> {
  return typeof out === 'string' ? platform().openJob?.() : undefined
}

function targetOf(options: MergeOptions | UnmergeOptions, open: verbs.OpenJob | undefined): Directory | string {
  if (open !== undefined) return options.out as string
  refuseWithoutPath(options)
  return openTarget(options.out, 'out')
}

async function openAll(options: MergeOptions, reading: Pick<RemoteOptions, 'readsRanges'>) {
  const { base, adapters: given, signal } = options
  const list = (Array.isArray(given) && !SOURCE.accepts(given) ? given : [given]) as AdapterToMerge[]
  const opening = Promise.all(list.map((adapter) => weightedAdapter(adapter, { signal })))
  const [adapters, opened] = await Promise.all([opening, openSource(base, 'base', { signal, ...reading })])
  return { base: opened, adapters, warnings: await baseWarnings(opened.directory, adapters) }
}

async function baseWarnings(base: Directory, adapters: readonly { adapter: LoraAdapter | Directory }[]) {
  const told = await Promise.all(
    adapters.map(({ adapter }) => {
      return adapter instanceof LoraAdapter ? undefined : otherBaseOf({ name: adapter.name, directory: adapter }, base)
    }),
  )
  return told.filter((warning) => warning !== undefined)
}
