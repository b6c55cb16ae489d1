// Merging and unmerging from folders to folders, in Node and in browsers: one verb each for .onnx files and safetensors checkpoints.
// What is written into a path of Node's goes another way, with threads, that can be resumed: merge/node/merge.ts.

import type { Directory } from '../base/bytes.js'
import { UnsupportedError } from '../base/errors.js'
import { StreamDirectory } from '../io/web/directories.js'
import { type MergeCheckpointOptions, mergeCheckpoint } from './chunks/merge-checkpoint.js'
import { loadConfig, openPlan, reportPlan } from './chunks/open-plan.js'
import { compareCheckpoints, type Differences } from './chunks/unmerge.js'
import { type ChosenFormat, chooseFormat, type MergeBase } from './format.js'
import type { MergePlanReport, MergeReport } from './report.js'
import { type MergeSettings, type PathSettings, refuseForFormat } from './settings.js'
import { writeTogether } from './staged.js'
import type { AdapterInput, MergeAdapter } from './weighted.js'

/** A merge from a folder into a folder. */
export interface MergeRequest extends MergeSettings {
  base: MergeBase
  /** One, or several that are added up. */
  adapters: AdapterInput | readonly AdapterInput[]
  out: Directory
  /** Name of the weights' file in `out`, where it is one. Default: the base's. */
  outFile?: string | undefined
}

/** What unmerging takes. */
export interface UnmergeRequest extends Omit<MergeRequest, 'base' | 'outDtype'> {
  /** The result of a merge. */
  merged: MergeBase
  /** The checkpoint as it was before: how many values differ from it is counted. */
  original?: MergeBase | undefined
}

/** An adapter's folder by its path, or one that is open. */
export type PathAdapter =
  | string
  | MergeAdapter
  | { readonly adapter: string | MergeAdapter; readonly weight?: number | undefined }

/** A merge into a path. */
export interface MergeToPath extends Omit<MergeRequest, 'base' | 'adapters' | 'out' | 'outFile'>, PathSettings {
  /** A folder, an .onnx file, a safetensors file or an index: its path, or what was opened. */
  base: string | MergeBase
  /** One, or several that are added up. */
  adapters: PathAdapter | readonly PathAdapter[]
  /** A folder, or a file that ends in .onnx or .safetensors. */
  out: string
}

/** What unmerging into a path takes. */
export interface UnmergeToPath extends Omit<MergeToPath, 'base' | 'outDtype'> {
  /** The result of a merge. */
  merged: string | MergeBase
  /** The checkpoint as it was before: how many values differ from it is counted. */
  original?: string | MergeBase | undefined
}

/** What unmerging wrote, and how that differs from the original. */
export interface UnmergeReport extends MergeReport {
  /** Undefined without an original, and for one job's share. */
  differences: Differences | undefined
}

/**
 * Writes a base with adapters folded in.
 *
 * @throws what mergeCheckpoint and mergeOnnx throw; UnsupportedError or ConfigError naming an option that the format cannot honor
 */
export async function merge(request: MergeRequest): Promise<MergeReport> {
  return write(request, await choose(request), 1)
}

/** What {@link merge} would do; nothing is written. Throws as that does, but in safetensors for values that are not finite. */
export async function planMerge(request: MergeRequest): Promise<MergePlanReport> {
  const chosen = await choose(request)
  const { base, adapters, out } = request
  const parts: Omit<MergePlanReport, 'out' | 'format'>[] = []
  if (chosen.format !== 'onnx') {
    const opened = await openPlan(base.directory, adapters, checkpointOptions(request, chosen))
    await opened.close()
    parts.push(reportPlan(opened))
  }
  if (chosen.format !== 'safetensors') {
    const opened = await openOnnx(request, chosen, 1)
    parts.push(await planOnnx(opened).finally(() => opened.close()))
  }
  return { out: out.name, format: chosen.format, ...joinPlans(parts) }
}

/**
 * Writes the base back from a merged model and the adapters that are in it, with their weights.
 *
 * @throws what {@link merge} throws; UnsupportedError when values were replaced, or an original is given for an .onnx file
 */
export async function unmerge({ merged, original, ...rest }: UnmergeRequest): Promise<UnmergeReport> {
  const request: MergeRequest = { ...rest, base: merged }
  const chosen = await choose(request)
  if (original !== undefined) refuseComparing(chosen.format)
  const report = await write(request, chosen, -1)
  if (original === undefined) return { ...report, differences: undefined }
  const { out } = request
  const file = report.out === out.name ? undefined : report.out.slice(out.name.length + 1)
  return { ...report, differences: await compareCheckpoints(out, original.directory, file, original.file) }
}

/** @throws UnsupportedError where the original of an .onnx file should be compared */
export function refuseComparing(format: string): void {
  if (format === 'safetensors') return
  throw new UnsupportedError({
    where: 'original',
    what: 'lowrank cannot compare the values of .onnx files',
    hint: 'Leave out original (--original), or unmerge a safetensors checkpoint',
  })
}

async function choose(request: MergeRequest): Promise<ChosenFormat> {
  const chosen = await chooseFormat(request.base, request.outFile, request)
  refuseForFormat(request, chosen.format)
  return chosen
}

async function write(request: MergeRequest, chosen: ChosenFormat, sign: 1 | -1): Promise<MergeReport> {
  const { base, adapters, out } = request
  const options = checkpointOptions(request, chosen)
  if (chosen.format === 'safetensors') return mergeCheckpoint(base.directory, adapters, out, options, sign)
  if (chosen.format === 'onnx') return writeOnnx(request, chosen, sign)
  return writeTogether(out, 0, {}, async (staged) => {
    const checkpoint = await mergeCheckpoint(base.directory, adapters, staged, options, sign)
    return joinReports(out.name, checkpoint, await writeOnnx({ ...request, out: staged }, chosen, sign))
  })
}

/** The .onnx of a merge, planned. */
export interface OpenOnnx {
  write(out: Directory): Promise<MergeReport>
  close(): Promise<void>
}

/** Opens and plans the part of a merge that writes an .onnx, alone or beside a checkpoint; nothing is written. */
export async function openOnnx(
  request: Omit<MergeRequest, 'out'>,
  { format, graphs }: ChosenFormat,
  sign: 1 | -1,
): Promise<OpenOnnx> {
  const { openGraphsMerge } = await import('./onnx/graphs.js')
  const { base, adapters, outFile, weightsOnly = false, signal, onProgress, modules, strict, reproducible } = request
  const { allowMissing, quantized, externalData, outDtype } = request
  // Beside a checkpoint they are there already.
  const companions = weightsOnly || format === 'both' ? undefined : base.directory
  const config = await loadConfig(base.directory)
  const isBesideCheckpoint = format === 'both'
  const factors = outDtype === 'fp32' || outDtype === 'fp16' ? outDtype : undefined
  const settings = { signal, onProgress, modules, strict, reproducible, allowMissing, quantized, externalData, factors }
  const options = { ...settings, companions, config, isBesideCheckpoint, path: outFile }
  return openGraphsMerge(base.directory, graphs, adapters, options, sign)
}

async function writeOnnx(request: MergeRequest, chosen: ChosenFormat, sign: 1 | -1): Promise<MergeReport> {
  const opened = await openOnnx(request, chosen, sign)
  try {
    return await opened.write(request.out)
  } finally {
    await opened.close()
  }
}

/** Merges, and drops what is written: sizes are exact, and values that are not finite show. */
export async function planOnnx(opened: OpenOnnx): Promise<Omit<MergePlanReport, 'out' | 'format'>> {
  const files: MergePlanReport['files'] = []
  const nowhere = new StreamDirectory((name) => {
    const file = { name, byteLength: 0 }
    files.push(file)
    return new WritableStream({
      write(bytes) {
        file.byteLength += bytes.byteLength
      },
    })
  })
  const report = await opened.write(nowhere)
  const { tensors, changed, branches, added, renamed, layers, copied, leftOut, warnings } = report
  const weights = files.filter(({ name }) => !copied.includes(name))
  return {
    tensors,
    changed,
    ...(branches !== undefined && { branches }),
    added,
    renamed,
    bytes: weights.reduce((sum, { byteLength }) => sum + byteLength, 0),
    files: weights,
    layers: layers.map(({ name }) => ({ name })),
    copied,
    leftOut,
    warnings,
  }
}

/** The parts of a report on a checkpoint and on an .onnx file beside it. */
export function joinPlans(
  parts: readonly Omit<MergePlanReport, 'out' | 'format'>[],
): Omit<MergePlanReport, 'out' | 'format'> {
  const [first, second] = parts
  if (second === undefined) return first
  return {
    ...first,
    tensors: first.tensors + second.tensors,
    changed: first.changed + second.changed,
    bytes: first.bytes + second.bytes,
    files: [...first.files, ...second.files],
  }
}

/** Of a checkpoint and of an .onnx file beside it. */
export function joinReports(out: string, first: MergeReport, second: MergeReport): MergeReport {
  return {
    ...first,
    out,
    format: 'both',
    tensors: first.tensors + second.tensors,
    changed: first.changed + second.changed,
    bytes: first.bytes + second.bytes,
    seconds: first.seconds + second.seconds,
  }
}

/** What planning a merge into a checkpoint takes of the settings. */
export function checkpointOptions(
  request: Omit<MergeRequest, 'out'>,
  { format, graphs, checkpoint }: ChosenFormat,
): MergeCheckpointOptions {
  const {
    tied,
    allowMissing,
    outDtype = 'keep',
    maxShardBytes,
    weightsOnly,
    strict,
    reproducible,
    signal,
    onProgress,
    outFile,
  } = request
  return {
    basePath: checkpoint,
    path: outFile,
    tied,
    allowMissing,
    dtype: outDtype === 'keep' ? undefined : outDtype,
    maxShardBytes,
    weightsOnly,
    strict,
    reproducible,
    signal,
    onProgress,
    ownFolders: format === 'both' ? [graphs[0].replace(/\/.*/, '/')] : [],
  }
}
