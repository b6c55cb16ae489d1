// What merging and unmerging take and report, and the tables that options are checked by.

import {
  BOOLEAN,
  COUNT,
  FUNCTION,
  isObject,
  type Kind,
  kind,
  listOf,
  type OptionTable,
  oneOf,
  SIGNAL,
} from '../base/options.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { MergeCheckpointOptions } from '../merge/chunks/merge-checkpoint.js'
import type { Differences } from '../merge/chunks/unmerge.js'
import type { MergeReport } from '../merge/output.js'
import { ADAPTER } from './adapters.js'
import { SOURCE, type Source, TARGET, type Target } from './sources.js'

/** An adapter to merge: in memory or in a source, with a weight where that is not 1. */
export type AdapterToMerge =
  | LoraAdapter
  | Source
  | { readonly adapter: LoraAdapter | Source; readonly weight?: number | undefined }

/** What merging and unmerging share. */
export interface MergingOptions
  extends Omit<MergeCheckpointOptions, 'basePath' | 'path' | 'tied' | 'allowMissing' | 'dtype'> {
  /** One adapter, or several that are added up. */
  adapters: AdapterToMerge | readonly AdapterToMerge[]
  /** Where the result goes: a file if it is a path that ends in .onnx or .safetensors, else a folder that gets the base's other files too. */
  out: Target
  /** Threads, the calling one among them, from path to path. Default: one a core, at most 4. */
  threads?: number | undefined
  /** Makes only every `count`-th output file, from `index` (from 0): one job's share. The last step is `finish`. */
  share?: { index: number; count: number } | undefined
  /** Checks the files that all shares have made, adds the others, and gives the output its name. */
  finish?: boolean | undefined
  /** Waits until all is on disk. Default true. */
  fsync?: boolean | undefined
  /** Keeps the finished shards of an interrupted merge whose checksums agree. Default: start over. */
  resume?: boolean | undefined
  /** Replaces an output that a merge wrote. */
  overwrite?: boolean | undefined
}

/** What {@link merge} takes. */
export interface MergeOptions extends MergingOptions, Pick<MergeCheckpointOptions, 'tied' | 'allowMissing' | 'dtype'> {
  /** An .onnx or .safetensors file, or a folder: its checkpoint, else its ONNX model. */
  base: Source
}

/** What {@link unmerge} takes. */
export interface UnmergeOptions extends MergingOptions {
  /** The merged checkpoint. */
  merged: Source
  /** The base as it was: how many values differ from it is counted. */
  original?: Source | undefined
  /** `keep` for a merge that changed tied embeddings for both uses. An untied result needs no word. Default `refuse`. */
  tied?: 'refuse' | 'keep' | undefined
}

/** What a merge would write and change. */
export type MergePlanReport = Pick<MergeReport, 'out' | 'tensors' | 'changed' | 'bytes'> & {
  layers: { name: string }[]
}

/** What {@link unmerge} wrote, and how that differs from the original. */
export interface UnmergeReport extends MergeReport {
  /** Undefined without an original, and for one job's share. */
  differences: Differences | undefined
}

const isAdapterToMerge = (value: unknown): boolean =>
  ADAPTER.accepts(value) ||
  SOURCE.accepts(value) ||
  (isObject(value) &&
    (ADAPTER.accepts(value.adapter) || SOURCE.accepts(value.adapter)) &&
    ['undefined', 'number'].includes(typeof value.weight) &&
    Object.keys(value).every((key) => key === 'adapter' || key === 'weight'))

const ADAPTER_TO_MERGE = kind('a path, a folder, a LoraAdapter, or { adapter, weight }', isAdapterToMerge)

const ADAPTERS: Kind = kind(
  `${ADAPTER_TO_MERGE.expected}; or a list of them`,
  (value) => isAdapterToMerge(value) || (listOf(ADAPTER_TO_MERGE).accepts(value) && (value as unknown[]).length > 0),
)

const MERGING: OptionTable<MergingOptions> = {
  adapters: ADAPTERS,
  out: TARGET,
  threads: COUNT,
  share: kind('{ index, count } with 0 ≤ index < count', (value) => isObject(value) && isShare(value)),
  finish: BOOLEAN,
  fsync: BOOLEAN,
  resume: BOOLEAN,
  overwrite: BOOLEAN,
  maxShardBytes: COUNT,
  reproducible: BOOLEAN,
  signal: SIGNAL,
  onProgress: FUNCTION,
  strict: BOOLEAN,
}

export const MERGE: OptionTable<MergeOptions> = {
  ...MERGING,
  base: SOURCE,
  tied: oneOf('refuse', 'untie', 'keep'),
  allowMissing: BOOLEAN,
  dtype: oneOf('F32', 'F16', 'BF16'),
}

export const UNMERGE: OptionTable<UnmergeOptions> = {
  ...MERGING,
  merged: SOURCE,
  original: SOURCE,
  tied: oneOf('refuse', 'keep'),
}

function isShare({ index, count }: Record<string, unknown>): boolean {
  return (
    Number.isSafeInteger(index) &&
    Number.isSafeInteger(count) &&
    0 <= (index as number) &&
    (index as number) < (count as number)
  )
}
