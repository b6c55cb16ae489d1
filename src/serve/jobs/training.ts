// The interface between a server and its training. `trainingIn` keeps a training in a folder.

import type { Model } from '../../graph/model-folder.js'
import type { AdapterRegistry, TunedModels } from '../adapters.js'
import type { Call } from '../route.js'

export interface ServerFacts {
  /** Names of the base; the first one is shown. */
  readonly names: readonly string[]
  readonly model: Model
  readonly chatTemplate: string | undefined
  readonly onError: (error: unknown) => void
}

/** Files, jobs, and the models that they make. */
export interface Jobs extends TunedModels {
  attach(registry: AdapterRegistry): void
  serves(requests: number): void
  keep(call: Call, answer: object): Promise<void>
  /** @param route method and path of the table, such as `GET /v1/files/*` */
  answer(route: string, call: Call): Promise<Response>
  /** Saves the state of the running job, and stops it. */
  close(): Promise<void>
}

/** A place in which a server keeps files and jobs. */
export interface Training {
  open(server: ServerFacts): Promise<Jobs>
}
