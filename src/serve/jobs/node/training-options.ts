// Options of a server that trains.

import type { DtypeChoice } from '../../../api/index.js'

/** Options of `trainingIn`. */
export interface TrainingOptions {
  /** The dtype of the model that is trained. Default: as `loadModel` chooses. */
  readonly dtype?: DtypeChoice | undefined
  /**
   * When jobs train. With `idle`, they wait while requests run.
   * @default always
   */
  readonly when?: 'always' | 'idle' | undefined
  /**
   * Threads of a job. Default: half of the processors.
   * @range an integer of at least 1
   */
  readonly threads?: number | undefined
  /**
   * The models that graders of jobs name, with the address of a server for each, up to /v1. LOWRANK_GRADER_KEY is their
   * key.
   * @flag NAME=URL,…
   */
  readonly graderModels?: Readonly<Record<string, string>> | undefined
  /**
   * Also trains on records that a provider's model wrote, as their `source` says. Read the provider's terms first.
   * Default false: such a file is refused.
   */
  readonly termsRead?: boolean | undefined
  /**
   * The most bytes of an uploaded file. Default: 512 MiB.
   * @range an integer of at least 1
   */
  readonly maxFileBytes?: number | undefined
  /**
   * The most bytes of all uploaded files of one owner. Default: 8 GiB.
   * @range an integer of at least 1
   */
  readonly maxOwnerBytes?: number | undefined
  /**
   * Days after which uploaded files and stored chats are deleted. Default: they stay.
   * @range a finite number above 0
   */
  readonly retentionDays?: number | undefined
  /**
   * The most training jobs of one owner that have not ended.
   * @range an integer of at least 1
   * @default 32
   */
  readonly maxJobs?: number | undefined
  /**
   * The most stored chats of one owner. If there are more, the oldest is deleted.
   * @range an integer of at least 1
   * @default 10000
   */
  readonly maxStored?: number | undefined
  /**
   * The most bytes of all stored chats of one owner. If there are more, the oldest are deleted. Default: 1 GiB.
   * @range an integer of at least 1
   */
  readonly maxStoredBytes?: number | undefined
  /**
   * Refuses to start if the database is damaged. Default false: the models answer, and each route that needs the
   * database has status 503.
   */
  readonly storeRequired?: boolean | undefined
  /**
   * Makes no backups. Default false: one a day in the folder `backups`, of which three are kept, if the disk has room
   * for two more.
   */
  readonly noBackup?: boolean | undefined
}
