// Names the folder in which a server trains: files/ and jobs/, each with a folder for each entry, and the store.

import path from 'node:path'
import { checkArgument, checkOptions, NAME } from '../../../core/base/options.js'
import { TRAINING_OPTIONS } from '../../gen/options.js'
import { withKysely } from '../../store/node/peers.js'
import type { Training } from '../training.js'
import type { TrainingOptions } from './training-options.js'

/**
 * Lets a server answer OpenAI's routes for files and fine-tuning. Files, jobs and models are in one folder, which one
 * server has at a time. Jobs train one after the other, in a process of their own at low priority; a server that starts
 * again goes on with them.
 *
 * @param folder a new or an empty folder, or one from before
 * @throws ConfigError for options that are unknown or not valid; when the server opens, UnsupportedError without the
 * packages `libsql` and `kysely`
 *
 * @example
 * import { createHandler, trainingIn } from 'lowrank/server'
 *
 * const handler = await createHandler({
 *   model: 'models/union-3m',
 *   training: trainingIn('out/training'),
 *   apiKeys: [{ key: 'SECRET', isAdmin: true }],
 *   hosts: ['localhost'],
 * })
 * const headers = { authorization: 'Bearer SECRET' }
 * console.log(await (await handler(new Request('http://localhost/v1/fine_tuning/jobs', { headers }))).json())
 * await handler.close()
 */
export function trainingIn(folder: string, options: TrainingOptions = {}): Training {
  checkArgument(folder, NAME, 'folder')
  checkOptions(options, 'trainingIn', TRAINING_OPTIONS)
  return {
    async open(server) {
      const { openTraining } = await withKysely(() => import('./open-training.js'))
      return openTraining(path.resolve(folder), options, server)
    },
  }
}
