// Merges and unmerges into a Directory of any kind. merge/node/job.ts does it for paths, with threads.

// The files of src/merge/, in reading order:
//   open.ts, parts.ts            the base and the adapters of a merge
//   plan/                        the plan for a checkpoint, from headers and names alone
//   onnx/, gguf/                 the plan for a graph, and for a file of llama.cpp
//   weight.ts                    the computation: W + Σ w·s·B·A
//   carry-out.ts, chunk-loop.ts  writes what was planned; node/ does it in threads
//   tools/                       combine, resize, compare, make plain LoRA
//   exchange/                    adapters for llama.cpp and mlx-lm

import { closing, type Directory } from '../core/base/bytes.js'
import { carryOut } from './carry-out.js'
import { chooseFormat } from './choose-format.js'
import type { MergePlanReport, MergeReport } from './merge-report.js'
import { openMerge, reportPlan } from './open.js'
import type { MergeInput } from './parts.js'
import { refuseForFormat } from './settings.js'

export interface MergeRequest extends MergeInput {
  out: Directory | string
}

export interface MergeJob {
  plan(): Promise<MergePlanReport>
  run(): Promise<MergeReport>
  close(): Promise<void>
}

/** Opens the base and the adapters and plans the merge; nothing is written. `runs`: the merge will be carried out. */
export type OpenJob = (request: MergeRequest, runs: boolean) => Promise<MergeJob>

export async function merge(request: MergeRequest, open: OpenJob = openInFolder): Promise<MergeReport> {
  return closing(await open(request, true), (job) => job.run())
}

export async function planMerge(request: MergeRequest, open: OpenJob = openInFolder): Promise<MergePlanReport> {
  return closing(await open(request, false), (job) => job.plan())
}

async function openInFolder(request: MergeRequest): Promise<MergeJob> {
  const out = request.out as Directory
  const chosen = await chooseFormat(request.base, request.outFile, request)
  refuseForFormat(request, chosen.format)
  const opened = await openMerge(request, chosen)
  return {
    plan: async () => reportPlan(opened, out.name),
    run: () => carryOut(opened, out, request),
    close: opened.close,
  }
}
