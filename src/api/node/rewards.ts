// Rewards from a file: graders, or a module. Its functions run in a worker, so that an endless one can be ended.

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { closingOnError } from '../../core/base/bytes.js'
import { ConfigError, FileError, messageOf } from '../../core/base/errors.js'
import { parseJson, toPlain } from '../../files/json.js'
import { spawnNodeWorker } from '../../onnx/runtime/node/worker.js'
import { connect } from '../../onnx/runtime/rpc.js'
import type { Grader } from '../../train/loop/graders/forms.js'
import type { Reward, RewardInput } from '../../train/loop/graders/rewards.js'
import type { RewardModule } from './reward-worker.js'

/** @param given the path, and after a # perhaps the names of the functions that are rewards: rewards.mjs#json,short */
export async function loadRewards(given: string): Promise<readonly (Reward | Grader)[]> {
  const [, path, list] = existsSync(given) ? [] : (/^(.*)#([^#/]+)$/.exec(given) ?? [])
  const file = path ?? given
  const named = list?.split(',') ?? []
  if (!existsSync(file)) throw new FileError({ where: file, what: 'the file of rewards does not exist' })
  if (file.endsWith('.json')) {
    const graders = toPlain(parseJson(await readFile(file), file))
    return (Array.isArray(graders) ? graders : [graders]) as Grader[]
  }
  if (/\.[cm]?ts$/.test(file) && !(process.features as { typescript?: unknown }).typescript) {
    throw new ConfigError({
      where: file,
      what: 'this version of Node runs no TypeScript',
      expected: 'Node 22.18 or newer',
      got: process.version,
      hint: 'Give a .mjs file',
    })
  }
  const worker = connect<RewardModule>(spawnNodeWorker(new URL('./reward-worker.js', import.meta.url)))
  return closingOnError(worker, async ({ remote }) => {
    const { names, functions } = await remote.load(pathToFileURL(resolve(file)).href, named).catch((cause: unknown) => {
      throw new ConfigError({ where: file, what: `the module cannot be loaded: ${messageOf(cause)}`, cause })
    })
    const missing = named.find((name) => !names.includes(name))
    if (missing !== undefined || names.length === 0) {
      throw new ConfigError({
        where: file,
        what:
          missing === undefined
            ? 'it has no default export of functions that judge texts'
            : `it exports no function ${missing}`,
        got: functions.join(', ') || 'no function',
        hint: `Write export default { ${functions.join(', ') || 'mine'} } with those that are rewards, or name them: ${file}#${functions[0] ?? 'mine'}`,
      })
    }
    return names.map((name) => {
      const reward = (input: RewardInput) => remote.judge(name, input)
      return Object.defineProperty(Object.assign(reward, { end: () => void worker.close() }), 'name', { value: name })
    })
  })
}
