// Merging and unmerging: finds out what the base is, and hands the work to the code for it, which loads with the first call. From paths
// to paths Node has a faster way, with threads, that can be resumed.

import type { Directory } from '../base/bytes.js'
import { ConfigError, UnsupportedError } from '../base/errors.js'
import {
  BOOLEAN,
  COUNT,
  checkArgument,
  checkOptions,
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
import type { AdapterInput } from '../merge/weighted.js'
import { ADAPTER } from './adapters.js'
import { findOnnx } from './inspect.js'
import type { Location } from './platform.js'
import { openFolder, openSource, openTarget, SOURCE, type Source, TARGET, type Target } from './sources.js'

/** An adapter to merge: in memory or in a source, with a weight where that is not 1. */
export type AdapterToMerge =
  | LoraAdapter
  | Source
  | { readonly adapter: LoraAdapter | Source; readonly weight?: number | undefined }

/** What merging and unmerging share. */
export interface MergingOptions extends Omit<MergeCheckpointOptions, 'basePath' | 'path' | 'tied' | 'dtype'> {
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
export interface MergeOptions extends MergingOptions, Pick<MergeCheckpointOptions, 'tied' | 'dtype'> {
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

/** Merging from paths to paths. */
export interface PathMerging {
  merge(options: MergeOptions & PathOptions): Promise<MergeReport>
  planMerge(options: MergeOptions & PathOptions): Promise<MergePlanReport>
  unmerge(
    options: UnmergeOptions & { merged: string; out: string; original?: string | undefined },
  ): Promise<UnmergeReport>
}

interface PathOptions {
  base: string
  out: string
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

const MERGE: OptionTable<MergeOptions> = {
  ...MERGING,
  base: SOURCE,
  tied: oneOf('refuse', 'untie', 'keep'),
  dtype: oneOf('F32', 'F16', 'BF16'),
}

const UNMERGE: OptionTable<UnmergeOptions> = {
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

/**
 * Writes a base model with adapters folded in: W + Σ weight · s·B·A for every weight that an adapter changes, rounded once to the type
 * that is stored. All else goes along byte for byte. The files of the result appear together, or not at all.
 *
 * @throws ConfigError for an option that is unknown or not usable; FileError when a path leads nowhere, `out` is not empty or the base
 *   itself; FormatError when a file is damaged; MismatchError when an adapter does not fit, or changes tied embeddings; UnsupportedError
 *   naming what cannot be merged; NumericError naming the tensor when a value is not finite
 *
 * @example
 * const report = await merge({ base: 'models/union-3m', adapters: 'tests/golden/peft/f32', out: 'out/with-adapter' })
 * console.log(`${report.changed} of ${report.tensors} tensors changed`)
 */
export async function merge(options: MergeOptions): Promise<MergeReport> {
  checkOptions(options, { of: 'merge', table: MERGE, required: ['base', 'adapters', 'out'] })
  const byPath = await pathMerging(options, options.base)
  if (byPath !== undefined) return byPath.merge(options as MergeOptions & PathOptions)
  refuseInMemory(options)
  const base = await openSource(options.base, 'base')
  const adapters = await openAdapters(options.adapters)
  const out = openTarget(options.out, 'out')
  const graph = await findOnnx(base)
  if (graph === undefined) {
    const { mergeCheckpoint } = await import('../merge/chunks/merge-checkpoint.js')
    return mergeCheckpoint(base.directory, adapters, out, checkpointOptions(options, base))
  }
  const model = await (await import('../formats/onnx/model.js')).loadOnnx(base.directory, graph)
  try {
    const { mergeOnnx } = await import('../merge/onnx/merge-onnx.js')
    const { signal, onProgress, strict } = options
    return await mergeOnnx(model, adapters, out, {
      strict,
      ...(signal !== undefined && { signal }),
      ...(onProgress !== undefined && { onProgress }),
      path: graph,
      companions: base.directory,
    })
  } finally {
    await model.close()
  }
}

/**
 * What {@link merge} would do: it plans, but writes nothing. Throws as that does, but for values that are not finite.
 *
 * @example
 * const plan = await planMerge({ base: 'models/union-3m', adapters: 'tests/golden/peft/f32', out: 'out/planned' })
 * console.log(plan.bytes, plan.layers.length)
 */
export async function planMerge(options: MergeOptions): Promise<MergePlanReport> {
  checkOptions(options, { of: 'planMerge', table: MERGE, required: ['base', 'adapters', 'out'] })
  const byPath = await pathMerging(options, options.base)
  if (byPath !== undefined) return byPath.planMerge(options as MergeOptions & PathOptions)
  refuseInMemory(options)
  const base = await openSource(options.base, 'base')
  if ((await findOnnx(base)) !== undefined) {
    throw new UnsupportedError({
      where: 'base',
      what: 'the merge into an .onnx file is planned from path to path only',
    })
  }
  const { openPlan, describePlan } = await import('../merge/chunks/merge-checkpoint.js')
  const adapters = await openAdapters(options.adapters)
  const { plan, close } = await openPlan(base.directory, adapters, checkpointOptions(options, base))
  await close()
  const { tensors, changed, layers } = describePlan(plan, { relativeChange: () => 0 })
  return {
    out: openTarget(options.out, 'out').name,
    tensors,
    changed,
    bytes: plan.bytes,
    layers: layers.map(({ name }) => ({ name })),
  }
}

/**
 * Writes the base back from a merged safetensors checkpoint and the adapters that are in it, with their weights. Exact in f32 up to
 * rounding; bf16 and f16 cannot be: with `original` the report counts the values that differ.
 *
 * @throws what {@link merge} throws; UnsupportedError for an ONNX model
 *
 * @example
 * const adapters = 'tests/golden/peft/f32'
 * await merge({ base: 'models/union-3m', adapters, out: 'out/merged-once' })
 * const { differences } = await unmerge({ merged: 'out/merged-once', adapters, out: 'out/base', original: 'models/union-3m' })
 * console.log(differences?.differing, differences?.largest)
 */
export async function unmerge(options: UnmergeOptions): Promise<UnmergeReport> {
  checkOptions(options, { of: 'unmerge', table: UNMERGE, required: ['merged', 'adapters', 'out'] })
  const { merged, original } = options
  const byPath = await pathMerging(options, merged)
  if (byPath !== undefined && (original === undefined || typeof original === 'string'))
    return byPath.unmerge(options as Parameters<PathMerging['unmerge']>[0])
  refuseInMemory(options)
  const base = await openSource(merged, 'merged')
  const before = original === undefined ? undefined : await openSource(original, 'original')
  const { unmergeCheckpoint } = await import('../merge/chunks/unmerge.js')
  return unmergeCheckpoint(base.directory, await openAdapters(options.adapters), openTarget(options.out, 'out'), {
    ...checkpointOptions(options, base),
    ...(before !== undefined && { original: before.directory, originalPath: before.file }),
  })
}

/** Node's way, where base and output are paths. */
async function pathMerging({ out }: MergingOptions, base: Source): Promise<PathMerging | undefined> {
  return typeof base === 'string' && typeof out === 'string' ? loadPathMerging?.() : undefined
}

let loadPathMerging: (() => Promise<PathMerging>) | undefined

/** Called once, by the entry for Node. */
export function usePathMerging(load: () => Promise<PathMerging>): void {
  loadPathMerging = load
}

/** Options that only files on a disk can honour. */
function refuseInMemory(options: MergingOptions): void {
  const refused = (['threads', 'share', 'finish', 'fsync', 'resume', 'overwrite'] as const).find(
    (name) => options[name] !== undefined,
  )
  if (refused === undefined) return
  throw new ConfigError({ where: refused, what: 'only goes from path to path', hint: 'Leave it out' })
}

function checkpointOptions(options: MergeOptions | UnmergeOptions, { file }: Location): MergeCheckpointOptions {
  const { tied, maxShardBytes, reproducible, signal, onProgress, strict } = options
  return {
    basePath: file,
    tied,
    dtype: 'dtype' in options ? options.dtype : undefined,
    maxShardBytes,
    reproducible,
    strict,
    ...(signal !== undefined && { signal }),
    ...(onProgress !== undefined && { onProgress }),
  }
}

/** Adapters in memory or as folders, from which they are read as they are needed. */
async function openAdapters(given: MergingOptions['adapters']): Promise<AdapterInput[]> {
  checkArgument(given, ADAPTERS, 'adapters')
  const list = (Array.isArray(given) && !SOURCE.accepts(given) ? given : [given]) as AdapterToMerge[]
  const open = async (adapter: LoraAdapter | Source): Promise<LoraAdapter | Directory> =>
    ADAPTER.accepts(adapter) ? (adapter as LoraAdapter) : openFolder(adapter as Source, 'adapters')
  return Promise.all(
    list.map(async (one) => {
      if (!isObject(one) || !('adapter' in one)) return open(one as LoraAdapter | Source)
      const { adapter, weight } = one as { adapter: LoraAdapter | Source; weight?: number }
      return { adapter: await open(adapter), ...(weight !== undefined && { weight }) }
    }),
  )
}
