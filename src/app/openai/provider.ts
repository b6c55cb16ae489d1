// What differs between providers: addresses, keys, the routes that list what an owner has, and the form of a job.

import { ConfigError } from '../../core/base/errors.js'

/** An object of a provider, as its API sends it. */
export type Item = Readonly<Record<string, unknown>> & { readonly id?: string }

/** A list that `export` takes home. */
export interface Route {
  /** Its name in the manifest, and of its file or folder in `lists/`. */
  readonly name: string
  /** Below the base address. `{id}` and `{of}` are the ids of an item of `of` and of the item above that one. */
  readonly path: string
  /** The list whose items have such a list each. */
  readonly of?: string
  /** True if the provider sends the whole list at once. Otherwise the list comes in pages. */
  readonly isWhole?: boolean
  /** True if the lists of such an item do not change any more. Default: they may. */
  isFinal?(item: Item): boolean
}

/** The files that items of a list name: the places in the item that hold an id, or ids. */
export type FileFields = Readonly<Record<string, readonly string[]>>

export type Method = 'supervised' | 'dpo' | 'reinforcement'

/** A fine-tuning job in words that all providers share. */
export interface Job {
  readonly id: string
  /** The name under which clients ask for the result. */
  readonly model: string
  /** The provider's own model that was trained. */
  readonly base: string
  readonly method: Method
  readonly trainingFile: string
  readonly validationFile: string | undefined
  readonly epochs: number | undefined
  readonly seed: number | undefined
  readonly grader: Item | undefined
  readonly responseFormat: object | undefined
  /** When it ended, in seconds since 1970. */
  readonly finishedAt: number | undefined
}

export interface Connection {
  /** Without a slash at its end. */
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
}

export type Environment = Readonly<Record<string, string | undefined>>

export interface Provider {
  readonly name: string
  /** @throws ConfigError without a key or an address in the environment */
  connect(environment: Environment): Connection
  readonly routes: readonly Route[]
  /** The list of files; an item has `id`, and perhaps `filename` and `bytes`. */
  readonly files: string
  readonly filesOf: FileFields
  /** The path of a file's bytes. */
  contentOf(id: string): string
  /** The list of jobs. */
  readonly jobs: string
  /** The job, or undefined if it made no model. */
  jobOf(item: Item): Job | undefined
  /** The path of a job's trained weights, for providers that give them away. */
  weightsOf?(job: Item): string | undefined
}

/** The lists of files and jobs, as all providers have them. */
export const FILES = {
  files: 'files',
  jobs: 'jobs',
  filesOf: {
    jobs: ['training_file', 'validation_file', 'result_files'],
    batches: ['input_file_id', 'output_file_id', 'error_file_id'],
  },
  contentOf: (id: string) => `/files/${encodeURIComponent(id)}/content`,
} as const

export function requireKey(name: string, key: string | undefined): string {
  if (key) return key
  throw new ConfigError({ where: name, what: 'no key', hint: `Set ${name} in the environment` })
}

export const numberOr = (value: unknown) => (typeof value === 'number' ? value : undefined)
export const textOr = (value: unknown) => (typeof value === 'string' && value !== '' ? value : undefined)
