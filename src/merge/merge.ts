// Merging and unmerging from folders to folders, in Node and in browsers: one verb each for .onnx files and safetensors checkpoints.
// What is written into a path of Node's goes another way, with threads, that can be resumed: merge/node/merge.ts.

import type { Directory } from '../base/bytes.js'
import { UnsupportedError } from '../base/errors.js'
import { carryOut } from './carry-out.js'
import { compareCheckpoints, type Differences } from './compare.js'
import { type ChosenFormat, chooseFormat, type MergeBase } from './format.js'
import { openMerge, reportPlan } from './open.js'
import type { MergeInput } from './parts.js'
import type { MergePlanReport, MergeReport } from './report.js'
import { type PathSettings, refuseForFormat } from './settings.js'
import type { MergeAdapter } from './weighted.js'

/** A merge from a folder into a folder. */
export interface MergeRequest extends Omit<MergeInput, 'sign'> {
  out: Directory
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
 * @throws what openMerge and carryOut throw; UnsupportedError or ConfigError naming an option that the format cannot honor
 */
export async function merge(request: MergeRequest): Promise<MergeReport> {
  return write({ ...request, sign: 1 }, await choose(request))
}

/** What {@link merge} would do; nothing is written. Throws as that does, but for values that are not finite. */
export async function planMerge(request: MergeRequest): Promise<MergePlanReport> {
  const opened = await openMerge(request, await choose(request))
  await opened.close()
  return reportPlan(opened, request.out.name)
}

/**
 * Writes the base back from a merged model and the adapters that are in it, with their weights.
 *
 * @throws what {@link merge} throws; UnsupportedError when values were replaced, or an original is given for an .onnx file
 */
export async function unmerge({ merged, original, ...rest }: UnmergeRequest): Promise<UnmergeReport> {
  const request = { ...rest, base: merged, sign: -1 as const }
  const chosen = await choose(request)
  if (original !== undefined) refuseComparing(chosen.format)
  const report = await write(request, chosen)
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

async function write(request: MergeInput & Pick<MergeRequest, 'out'>, chosen: ChosenFormat): Promise<MergeReport> {
  const opened = await openMerge(request, chosen)
  try {
    return await carryOut(opened, request.out, request)
  } finally {
    await opened.close()
  }
}
