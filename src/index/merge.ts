// Merging and unmerging: finds out what the base is, and hands the work to the code for it.

import type { Directory } from '../base/bytes.js'
import { ConfigError, UnsupportedError } from '../base/errors.js'
import { checkOptions, isObject } from '../base/options.js'
import type { RemoteOptions } from '../io/hub/directory.js'
import type { Located } from '../io/locate.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { MergeCheckpointOptions } from '../merge/chunks/merge-checkpoint.js'
import type { MergeReport } from '../merge/output.js'
import type { AdapterInput } from '../merge/weighted.js'
import { ADAPTER } from './adapters.js'
import { findOnnx } from './inspect.js'
import {
  type AdapterToMerge,
  MERGE,
  type MergeOptions,
  type MergePlanReport,
  type MergingOptions,
  UNMERGE,
  type UnmergeOptions,
  type UnmergeReport,
} from './merge-options.js'
import { type PathMerging, pathMerging } from './path-merging.js'
import { openFolder, openSource, openTarget, SOURCE, type Source } from './sources.js'

/** See the entry. */
export async function merge(options: MergeOptions): Promise<MergeReport> {
  checkOptions(options, { of: 'merge', table: MERGE, required: ['base', 'adapters', 'out'] })
  const byPath = await pathMerging(options.base, options.out)
  if (byPath !== undefined) return byPath.merge(options as MergeOptions & { base: string; out: string })
  refuseInMemory(options)
  const base = await openSource(options.base, 'base', onceThrough(options))
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

/** See the entry. */
export async function planMerge(options: MergeOptions): Promise<MergePlanReport> {
  checkOptions(options, { of: 'planMerge', table: MERGE, required: ['base', 'adapters', 'out'] })
  const byPath = await pathMerging(options.base, options.out)
  if (byPath !== undefined) return byPath.planMerge(options as MergeOptions & { base: string; out: string })
  refuseInMemory(options)
  const base = await openSource(options.base, 'base', onceThrough(options))
  if ((await findOnnx(base)) !== undefined) {
    throw new UnsupportedError({
      where: 'base',
      what: 'the merge into an .onnx file is planned from path to path only',
    })
  }
  return planCheckpoint(base, options, openTarget(options.out, 'out').name)
}

/** The plan for a checkpoint, of which it reads names and shapes. */
export async function planCheckpoint(base: Located, options: MergeOptions, out: string): Promise<MergePlanReport> {
  const { openPlan, describePlan } = await import('../merge/chunks/merge-checkpoint.js')
  const adapters = await openAdapters(options.adapters)
  const { plan, close } = await openPlan(base.directory, adapters, checkpointOptions(options, base))
  await close()
  const { tensors, changed, layers } = describePlan(plan, { relativeChange: () => 0 })
  return { out, tensors, changed, bytes: plan.bytes, layers: layers.map(({ name }) => ({ name })) }
}

/** See the entry. */
export async function unmerge(options: UnmergeOptions): Promise<UnmergeReport> {
  checkOptions(options, { of: 'unmerge', table: UNMERGE, required: ['merged', 'adapters', 'out'] })
  const { merged, original } = options
  const byPath = await pathMerging(merged, options.out)
  if (byPath !== undefined && (original === undefined || typeof original === 'string'))
    return byPath.unmerge(options as Parameters<PathMerging['unmerge']>[0])
  refuseInMemory(options)
  const base = await openSource(merged, 'merged', onceThrough(options))
  const before = original === undefined ? undefined : await openSource(original, 'original', onceThrough(options))
  const { unmergeCheckpoint } = await import('../merge/chunks/unmerge.js')
  return unmergeCheckpoint(base.directory, await openAdapters(options.adapters), openTarget(options.out, 'out'), {
    ...checkpointOptions(options, base),
    ...(before !== undefined && { original: before.directory, originalPath: before.file }),
  })
}

/** A merge reads each byte of the base once: what does not stay here need not be kept. */
function onceThrough({ signal }: MergingOptions): RemoteOptions {
  return { readsRanges: true, ...(signal !== undefined && { signal }) }
}

/** Options that only files on a disk can honour. */
function refuseInMemory(options: MergingOptions): void {
  const refused = (['threads', 'share', 'finish', 'fsync', 'resume', 'overwrite'] as const).find(
    (name) => options[name] !== undefined,
  )
  if (refused === undefined) return
  throw new ConfigError({ where: refused, what: 'only goes from path to path', hint: 'Leave it out' })
}

function checkpointOptions(options: MergeOptions | UnmergeOptions, { file }: Located): MergeCheckpointOptions {
  const { tied, maxShardBytes, reproducible, signal, onProgress, strict } = options
  return {
    basePath: file,
    tied,
    allowMissing: 'allowMissing' in options ? options.allowMissing : undefined,
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
