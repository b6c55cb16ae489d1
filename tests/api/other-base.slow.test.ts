// An adapter on other weights than it was trained on, with the same shapes and names. Each use of the adapter says so,
// because its folder records a digest of the weights.

import { evaluate, loadAdapter, MemoryDirectory, merge, openSession, train } from 'lowrank'
import { beforeAll, expect, it } from 'vitest'
import { enginesHere } from '../engines-here.js'
import { goldenPath } from '../golden.js'

const MODEL = 'models/union-3m'
const SAYS = /trained on another base than .*lowrank\.json/
const data = [{ text: 'The sea was calm.' }, { text: 'The whale was white.' }]
const config = { rank: 1, alpha: 4, init: 'random', targetModules: ['q_proj'] } as const
const run = { data, config, maxSteps: 1, batchSize: 2 }

const folder = new MemoryDirectory()
const other = new MemoryDirectory()
beforeAll(enginesHere)
beforeAll(async () => {
  await train({ ...run, model: MODEL, out: folder })
  await merge({ base: MODEL, adapters: folder, out: other })
})

/** The message of each use of the adapter on a base. */
const uses = {
  async openSession(model, onWarning) {
    await (await openSession(model, { adapters: { folder }, on: { warning: onWarning } })).dispose()
  },
  async 'session.add'(model, onWarning) {
    const session = await openSession(model, { on: { warning: onWarning } })
    await session.add('late', await loadAdapter(folder))
    await session.dispose()
  },
  async evaluate(model, onWarning) {
    await evaluate({ model, adapters: { folder }, data, on: { warning: onWarning } })
  },
  async train(model, onWarning) {
    await train({ data, model, adapter: folder, maxSteps: 1, batchSize: 2, on: { warning: onWarning } })
  },
  async merge(base, onWarning) {
    const { warnings } = await merge({ base, adapters: folder, out: new MemoryDirectory() })
    for (const warning of warnings) onWarning(warning)
  },
} satisfies Record<string, (model: string | MemoryDirectory, onWarning: (message: string) => void) => Promise<void>>

it.each(Object.entries(uses))('%s tells it, and nothing on its own base', async (_, use) => {
  const [told, own] = [[], []] as string[][]
  await use(other, (message) => told.push(message))
  await use(MODEL, (message) => own.push(message))
  expect(told).toEqual([expect.stringMatching(SAYS)])
  expect(own).toEqual([])
})

it('nothing is told of an encoder and its decoder, which are trained as one graph', async () => {
  const model = goldenPath('graphs', 't5')
  const own = new MemoryDirectory()
  const said: string[] = []
  const pairs = [{ input: 'the sea', target: 'calm' }]
  await train({ model, data: pairs, task: 'seq2seq', config: { rank: 1 }, maxSteps: 1, out: own })
  const session = await openSession(model, { adapters: { own }, on: { warning: (message) => said.push(message) } })
  await session.dispose()
  expect(said).toEqual([])
})
