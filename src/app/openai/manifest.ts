// manifest.json: what is in the folder, and what is missing. The page shows the same.

import type { Report } from '../../api/report/page.js'
import type { Route } from './provider.js'

export interface Missing {
  readonly path: string
  readonly status: number
  readonly what: string
}

/** A project that a key could see. Items of other projects need a key of theirs. */
export interface Seen {
  readonly url: string
  readonly organization: string
  readonly project: string
  readonly at: string
}

export interface FileEntry {
  readonly name: string
  readonly purpose: string
  readonly bytes: number
  readonly sha256: string
}

/** A job as it was moved to a base. */
export interface Moved {
  readonly job: string
  /** The name under which clients ask for it. */
  readonly model: string
  readonly base: string
  /** The place of the adapter; undefined if the job was not moved. */
  readonly adapter?: string | undefined
  /** True if it is the provider's own adapter. */
  readonly isTaken?: boolean
  /** How it was trained and what differs, or why it was not moved. */
  readonly notes: readonly string[]
}

export interface Manifest {
  readonly version: 1
  readonly provider: string
  readonly seen: readonly Seen[]
  /** Items of each list, by its name. */
  readonly lists: Readonly<Record<string, number>>
  /** Files by their place in the folder. */
  readonly files: Readonly<Record<string, FileEntry>>
  readonly missing: readonly Missing[]
  /** Models that did not exist any more when `record` asked them. */
  readonly gone: Readonly<Record<string, string>>
  /** False for models that give no log-probabilities. */
  readonly logprobs: Readonly<Record<string, boolean>>
  readonly moved: readonly Moved[]
}

export const emptyManifest = (provider: string): Manifest => ({
  ...{ version: 1, provider, seen: [], lists: {}, files: {}, missing: [], gone: {}, logprobs: {}, moved: [] },
})

/** What a status means for whoever wants the data. */
export function meaningOf(status: number, kind: 'list' | 'file'): string {
  if (status === 401) return 'the key is not accepted'
  if (status === 403) return 'this key may not read it: use a key of its project, with the permission to read'
  if (status === 404 || status === 410) return kind === 'file' ? 'it has expired or was deleted' : 'the route is gone'
  if (status === 429) return 'the provider is busy, or a limit is reached: run the command again later'
  return 'run the command again'
}

export function exportPage({ provider, seen, lists, files, missing }: Manifest, routes: readonly Route[]): Report {
  const entries = Object.entries(files)
  const total = entries.reduce((sum, [, { bytes }]) => sum + bytes, 0)
  const table = (title: string, columns: string[], rows: (string | number)[][]) =>
    ({ kind: 'table', title, columns, rows }) as const
  const facts = [
    ['provider', provider],
    ...seen.map(({ organization, project, at }) => ['project seen', `${organization} / ${project}, ${at}`] as const),
    ['files', `${entries.length}, ${total} bytes`],
    ['missing', String(missing.length)],
    ['weights', 'OpenAI and Azure give none away. Of other providers they are in weights/'],
  ] as const
  const filesShown = entries.map(([place, { name, purpose, bytes, sha256 }]) => [place, name, purpose, bytes, sha256])
  return {
    title: `Taken home from ${provider}`,
    command: 'openai',
    sections: [
      { kind: 'facts', facts },
      table(
        'What is missing',
        ['path', 'status', 'why'],
        missing.map(({ path, status, what }) => [path, status, what]),
      ),
      table(
        'Lists',
        ['list', 'items'],
        routes.map(({ name }) => [name, lists[name] ?? 0]),
      ),
      table('Files', ['place', 'name', 'purpose', 'bytes', 'SHA-256'], filesShown),
    ],
  }
}
