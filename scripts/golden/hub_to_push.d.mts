/** Starts a server that takes uploads as the Hub does. */
export function startHub(): Promise<{
  readonly endpoint: string
  readonly repositories: Map<string, { visibility: string; files: Map<string, Uint8Array> }>
  /** The number of large files that were uploaded. */
  uploads: number
  /** The number of commits to refuse before one is accepted. */
  failCommits: number
  /** True to refuse everything. */
  refuses: boolean
  reset(): void
  close(): Promise<void>
}>
