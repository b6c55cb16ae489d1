// Node's way of merging into a path, with threads, that can be resumed: put in place by the entry for Node.

import type { MergeToPath, UnmergeReport, UnmergeToPath } from '../merge/merge.js'
import type { MergePlanReport, MergeReport } from '../merge/report.js'

/** Merging into a path. */
export interface PathMerging {
  merge(options: MergeToPath): Promise<MergeReport>
  planMerge(options: MergeToPath): Promise<MergePlanReport>
  unmerge(options: UnmergeToPath): Promise<UnmergeReport>
}

let loadPathMerging: (() => Promise<PathMerging>) | undefined

/** Called once, by the entry for Node. */
export function usePathMerging(load: () => Promise<PathMerging>): void {
  loadPathMerging = load
}

/** Undefined where there are no paths. */
export async function pathMerging(): Promise<PathMerging | undefined> {
  return loadPathMerging?.()
}
