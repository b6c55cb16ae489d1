// The interface through which a server runs fine-tuning. `trainingIn` implements it with a folder.

import type { Call } from '../route.js'
import type { Completions } from './node/completions.js'
import type { Files } from './node/files.js'
import type { JobQueue, ServerFacts } from './node/jobs.js'
import type { Models } from './node/models.js'

/** Files, jobs, and the models that they make. */
export interface Jobs {
  readonly files: Files
  readonly queue: JobQueue
  readonly models: Models
  readonly completions: Completions
  /** Makes a file of a form, or of stored chats. */
  createFile(call: Call): Promise<object>
  serves(requests: number): void
  /** Saves the state of the running job, and stops it. */
  close(): Promise<void>
}

/** A place in which a server keeps files and jobs. */
export interface Training {
  open(server: ServerFacts): Promise<Jobs>
}
