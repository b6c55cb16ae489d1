// Node's way of merging into a path, with threads: put in place by the entry for Node.

import type { OpenJob } from '../../merge/merge.js'

let load: (() => Promise<OpenJob>) | undefined

/** Called once, by the entry for Node. */
export function usePathMerging(loadJob: () => Promise<OpenJob>): void {
  load = loadJob
}

/** The function that opens a merge at this place. Undefined if the place is no path, or the platform has no paths. */
export async function pathMerging(out: unknown): Promise<OpenJob | undefined> {
  return typeof out === 'string' ? load?.() : undefined
}
