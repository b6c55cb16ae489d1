// Node's way of merging from paths to paths, with threads, that can be resumed: put in place by the entry for Node.

import type { MergeReport } from '../merge/output.js'
import type { MergeOptions, MergePlanReport, UnmergeOptions, UnmergeReport } from './merge-options.js'

interface Paths {
  base: string
  out: string
}

/** Merging from paths to paths. */
export interface PathMerging {
  merge(options: MergeOptions & Paths): Promise<MergeReport>
  planMerge(options: MergeOptions & Paths): Promise<MergePlanReport>
  unmerge(
    options: UnmergeOptions & { merged: string; out: string; original?: string | undefined },
  ): Promise<UnmergeReport>
}

let loadPathMerging: (() => Promise<PathMerging>) | undefined

/** Called once, by the entry for Node. */
export function usePathMerging(load: () => Promise<PathMerging>): void {
  loadPathMerging = load
}

/** Where base and output are paths, and there are some. */
export async function pathMerging(base: unknown, out: unknown): Promise<PathMerging | undefined> {
  return typeof base === 'string' && typeof out === 'string' ? loadPathMerging?.() : undefined
}
