// Asks our own server the chats of a folder, and lists those that it would refuse.

import { createHandler } from '../../../serve/node/entry.js'
import { askHandler, inPool } from './client.js'
import { Folder } from './folder.js'
import { readJobs } from './jobs.js'

export interface CheckOptions {
  /** The folder of an export. */
  readonly dir: string
  /** The model that will answer. Default: the base of the first job that was moved. */
  readonly base?: string | undefined
  readonly chatTemplate?: string | undefined
  readonly signal?: AbortSignal | undefined
  readonly on?: { progress?(event: { done: number; total: number }): void } | undefined
}

export interface CheckReport {
  readonly asked: number
  /** Each refusal of the server, with the file and line of the chats that it refuses. */
  readonly refused: Readonly<Record<string, readonly string[]>>
}

/**
 * Asks a server with the base each stored or recorded chat, with all fields that its client sent, for one token.
 *
 * @throws ConfigError if no job was moved, and no base is given
 */
export async function checkTraffic({ dir, base, chatTemplate, signal, on }: CheckOptions): Promise<CheckReport> {
  const folder = await Folder.open(dir)
  const jobs = await readJobs(folder)
  const model = base ?? folder.baseOf()
  const requests = jobs.flatMap(({ prompts: { traffic } }) => traffic)
  const handler = await createHandler({ model, servedModelName: 'the base', chatTemplate, on: {} })
  const refused: Record<string, string[]> = {}
  let done = 0
  try {
    await inPool(requests, async ({ request: { max_tokens: _, ...request }, where }) => {
      signal?.throwIfAborted()
      const body = { ...request, model: 'the base', max_completion_tokens: 1, stream: false }
      const { error } = await askHandler(handler, body)
      if (error !== undefined) refused[error] = [...(refused[error] ?? []), where]
      on?.progress?.({ done: ++done, total: requests.length })
    })
  } finally {
    await handler.close()
  }
  return { asked: requests.length, refused }
}
