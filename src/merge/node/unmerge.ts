// Unmerging in Node, from paths to paths.

import path from 'node:path'
import { UnsupportedError } from '../../base/errors.js'
import { locate } from '../../io/node/files.js'
import { compareCheckpoints, type Differences } from '../chunks/unmerge.js'
import { type FileAdapter, type MergeFilesOptions, type MergeFilesReport, mergeCheckpointFiles } from './merge.js'

/** What taking adapters out by path takes. */
export interface UnmergeFilesOptions extends Omit<MergeFilesOptions, 'dtype' | 'sign' | 'tied'> {
  /** `keep` for a merge that changed tied embeddings for both uses. An untied result needs no word. Default `refuse`. */
  tied?: 'refuse' | 'keep' | undefined
  /** Path of the base as it was: how many values differ from it is counted. */
  original?: string | undefined
}

/** What it wrote, and how that differs from the original. */
export interface UnmergeFilesReport extends MergeFilesReport {
  /** Undefined without an original, and for one job's share. */
  differences: Differences | undefined
}

/**
 * Takes adapters out of a merged checkpoint, as unmergeCheckpoint does.
 *
 * @throws what merge and compareCheckpoints throw; UnsupportedError for an ONNX model
 */
export async function unmergeCheckpointFiles(
  merged: string,
  adapters: readonly FileAdapter[],
  out: string,
  { original, ...options }: UnmergeFilesOptions = {},
): Promise<UnmergeFilesReport> {
  if (merged.endsWith('.onnx')) {
    throw new UnsupportedError({
      where: merged,
      what: 'adapters are taken out of safetensors checkpoints only',
      hint: 'Keep the .onnx file that the adapter was merged into',
    })
  }
  const first = original === undefined ? undefined : await locate(original)
  const report = await mergeCheckpointFiles(merged, adapters, out, { ...options, sign: -1 })
  if (first === undefined || options.share !== undefined) return { ...report, differences: undefined }
  const { directory, file } = await locate(path.resolve(out))
  return { ...report, differences: await compareCheckpoints(directory, first.directory, file, first.file) }
}
