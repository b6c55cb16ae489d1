// Merging and unmerging into folders of any kind; merge/node/job.ts does it for paths, with threads.

import type { Directory } from '../base/bytes.js'
import { UnsupportedError } from '../base/errors.js'
import { carryOut } from './carry-out.js'
import { compareCheckpoints, type Differences } from './compare.js'
import { chooseFormat, type MergeBase } from './format.js'
import { openMerge, reportPlan } from './open.js'
import type { MergeInput } from './parts.js'
import type { MergeFormat, MergePlanReport, MergeReport } from './report.js'
import { type PathSettings, refuseForFormat } from './settings.js'

export interface MergeRequest extends MergeInput, PathSettings {
  out: Directory | string
}

export interface UnmergeRequest extends Omit<MergeRequest, 'base' | 'outDtype' | 'sign'> {
  merged: MergeBase
  /** The checkpoint as it was before: how many values differ from it is counted. */
  original?: MergeBase | undefined
}

export interface UnmergeReport extends MergeReport {
  /** Undefined without an original, and for one job's share. */
  differences: Differences | undefined
}

export interface MergeJob {
  readonly format: MergeFormat
  plan(): Promise<MergePlanReport>
  run(): Promise<MergeReport>
  result(report: MergeReport): Promise<MergeBase>
  close(): Promise<void>
}

/** Opens what is read and plans the merge; nothing is written. `runs`: the merge is to follow. */
export type OpenJob = (request: MergeRequest, runs: boolean) => Promise<MergeJob>

/** Writes a base with adapters folded in. */
export async function merge(request: MergeRequest, open: OpenJob = openInFolder): Promise<MergeReport> {
  return withJob(await open(request, true), (job) => job.run())
}

export async function planMerge(request: MergeRequest, open: OpenJob = openInFolder): Promise<MergePlanReport> {
  return withJob(await open(request, false), (job) => job.plan())
}

/** Writes the base back from a merged model and the adapters that are in it, with their weights. */
export async function unmerge(
  { merged, original, ...rest }: UnmergeRequest,
  open: OpenJob = openInFolder,
): Promise<UnmergeReport> {
  return withJob(await open({ ...rest, base: merged, sign: -1 }, true), async (job) => {
    if (original !== undefined && job.format !== 'safetensors') {
      throw new UnsupportedError({
        where: 'original',
        what: 'lowrank cannot compare the values of .onnx files',
        hint: 'Leave out `original`, or unmerge a safetensors checkpoint',
      })
    }
    const report = await job.run()
    if (original === undefined || rest.share !== undefined) return { ...report, differences: undefined }
    return { ...report, differences: await compareCheckpoints(await job.result(report), original) }
  })
}

async function withJob<T>(job: MergeJob, work: (job: MergeJob) => Promise<T>): Promise<T> {
  try {
    return await work(job)
  } finally {
    await job.close()
  }
}

async function openInFolder(request: MergeRequest): Promise<MergeJob> {
  const out = request.out as Directory
  const chosen = await chooseFormat(request.base, request.outFile, request)
  refuseForFormat(request, chosen.format)
  const opened = await openMerge(request, chosen)
  return {
    format: chosen.format,
    plan: async () => reportPlan(opened, out.name),
    run: () => carryOut(opened, out, request),
    result: async (report) => {
      return { directory: out, file: report.out === out.name ? undefined : report.out.slice(out.name.length + 1) }
    },
    close: opened.close,
  }
}
