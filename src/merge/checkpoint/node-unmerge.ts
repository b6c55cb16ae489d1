// Unmerging in Node, from paths to paths.

import path from 'node:path'
import { locate } from '../../io/node-files.js'
import { type FileAdapter, type MergeFilesOptions, type MergeFilesReport, mergeCheckpointFiles } from './node-merge.js'
import { compareCheckpoints, type Differences } from './unmerge.js'

export interface UnmergeFilesOptions extends Omit<MergeFilesOptions, 'dtype' | 'sign' | 'tied'> {
  /** Path of the base as it was: how many values differ from it is counted. */
  original?: string | undefined
}

export interface UnmergeFilesReport extends MergeFilesReport {
  differences: Differences | undefined
}

/** Takes adapters out of a merged checkpoint, as unmergeCheckpoint does. Throws as {@link mergeCheckpointFiles}. */
export async function unmergeCheckpointFiles(
  merged: string,
  adapters: readonly FileAdapter[],
  out: string,
  { original, ...options }: UnmergeFilesOptions = {},
): Promise<UnmergeFilesReport> {
  const first = original === undefined ? undefined : await locate(original)
  const report = await mergeCheckpointFiles(merged, adapters, out, { ...options, sign: -1 })
  if (first === undefined || options.share !== undefined) return { ...report, differences: undefined }
  const { directory, file } = await locate(path.resolve(out))
  return { ...report, differences: await compareCheckpoints(directory, first.directory, file, first.file) }
}
