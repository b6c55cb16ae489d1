/** A server that takes what is sent to the Hub. */
export function startHub(): Promise<{
  readonly endpoint: string
  readonly repositories: Map<string, { visibility: string; files: Map<string, Uint8Array> }>
  /** Large files that came. */
  uploads: number
  /** Commits that are refused before one is taken. */
  failCommits: number
  /** Everything is refused. */
  refuses: boolean
  reset(): void
  close(): Promise<void>
}>
