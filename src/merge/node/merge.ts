// Merging and unmerging into paths: what the verbs of merge/merge.ts do from folder to folder, here with several
// threads, a look at what is there already, and a result that can be resumed or made by the jobs of a cluster.

import path from 'node:path'
import { fileError } from '../../io/node/errors.js'
import { locate, NodeDirectory } from '../../io/node/files.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { compareCheckpoints } from '../compare.js'
import type { MergeBase } from '../format.js'
import {
  type MergeToPath,
  type PathAdapter,
  refuseComparing,
  type UnmergeReport,
  type UnmergeToPath,
} from '../merge.js'
import type { MergePlanReport, MergeReport } from '../report.js'
import type { AdapterInput } from '../weighted.js'
import { MergeJob, type PathRequest } from './job.js'

/**
 * Merges into `out`. It works in a folder beside it and renames at the end; an interrupted merge leaves base and `out`
 * as they were.
 *
 * @throws what merge of merge/merge.ts throws; FileError also when `out` is there already, is what is being read, has
 *   no room, or another merge is making it
 */
export async function merge(options: MergeToPath): Promise<MergeReport> {
  return run(await requestOf(options, options.base, 1))
}

/**
 * Tells what {@link merge} would do; nothing is written. Throws as that does, but in safetensors for values that are
 * not finite.
 */
export async function planMerge(options: MergeToPath): Promise<MergePlanReport> {
  return withJob(await requestOf(options, options.base, 1), false, (job) => job.plan())
}

/** Unmerges into `out`, as unmerge of merge/merge.ts does. Throws what {@link merge} throws. */
export async function unmerge({ merged, original, ...options }: UnmergeToPath): Promise<UnmergeReport> {
  const request = await requestOf({ ...options, base: merged }, merged, -1)
  const first = original === undefined ? undefined : await baseOf(original)
  const report = await withJob(request, true, (job) => {
    if (first !== undefined) refuseComparing(job.format)
    return job.run()
  })
  if (first === undefined || options.share !== undefined) return { ...report, differences: undefined }
  const { directory, file } = await locate(path.resolve(options.out))
  return { ...report, differences: await compareCheckpoints(directory, first.directory, file, first.file) }
}

function run(request: PathRequest): Promise<MergeReport> {
  return withJob(request, true, (job) => job.run())
}

/** @param runs whether it is to be run, and not only planned */
async function withJob<T>(request: PathRequest, runs: boolean, work: (job: MergeJob) => Promise<T>): Promise<T> {
  let job: MergeJob | undefined
  try {
    job = await MergeJob.open(request, runs)
    return await work(job)
  } catch (error) {
    // An error of the file system about any of the files: a name that cannot be looked up, or too many open files.
    const { syscall, path: file = request.out } = error as NodeJS.ErrnoException
    throw syscall === undefined ? error : fileError(file, 'cannot be used', error)
  } finally {
    await job?.close()
  }
}

async function requestOf(options: MergeToPath, base: string | MergeBase, sign: 1 | -1): Promise<PathRequest> {
  const given = isList(options.adapters) ? options.adapters : [options.adapters]
  const adapters = given.map(openAdapter)
  const folders = adapters.flatMap((one) => {
    const adapter = 'adapter' in one ? one.adapter : one
    return adapter instanceof NodeDirectory ? [adapter.name] : []
  })
  return { ...options, base: await baseOf(base), adapters, inputs: folders, sign }
}

/** A graph that lies in a folder below config.json, as on the Hub, belongs to the folder with that. */
async function baseOf(base: string | MergeBase): Promise<MergeBase> {
  if (typeof base !== 'string') return base
  const { directory, file } = await locate(base)
  if (file === undefined || !file.endsWith('.onnx') || (await directory.has('config.json'))) return { directory, file }
  const parent = new NodeDirectory(path.join(directory.name, '..'))
  if (!(await parent.has('config.json'))) return { directory, file }
  return { directory: parent, file: `${path.basename(path.resolve(directory.name))}/${file}` }
}

function openAdapter(input: PathAdapter): AdapterInput {
  const { adapter, weight } =
    typeof input === 'object' && !(input instanceof LoraAdapter) && 'adapter' in input
      ? input
      : { adapter: input, weight: undefined }
  const opened = typeof adapter === 'string' ? new NodeDirectory(adapter) : adapter
  return weight === undefined ? opened : { adapter: opened, weight }
}

function isList(adapters: MergeToPath['adapters']): adapters is readonly PathAdapter[] {
  return Array.isArray(adapters)
}
