// A run that is stopped at some moments of all kinds, and resumed. All moments are in stops.slow.test.ts.

import { afterAll, beforeAll, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { loadModel, type Model } from '../../src/graph/model-folder.js'
import { checkStops, runUntil } from './stops.js'
import { folder, module } from './tiny.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(folder, { runtime: { module } })
})
afterAll(() => model.close())

it('is resumed to the same bytes', () =>
  checkStops(model, (moment, index) => moment === 'evaluate 1/2' || index % 14 === 0))

it('keeps its steps in TensorBoard when it was stopped in an evaluation', async () => {
  const tensorboard = new MemoryDirectory()
  const out = new MemoryDirectory()
  const { moments } = (await runUntil(-1, model)).outcome
  const inEvaluation = moments.indexOf('evaluate 1/2', moments.indexOf('evaluation 0'))
  await runUntil(inEvaluation, model, out, { tensorboard })
  await runUntil(-1, model, out, { tensorboard, resume: true })
  const [, resumed] = [...tensorboard.files].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, bytes]) => bytes)
  // The header; then the restart, which drops what older files have from step 3 on: its step is the tenth byte.
  const header = new DataView(resumed.buffer, resumed.byteOffset).getUint32(0, true) + 16
  expect([...resumed.subarray(header + 12 + 9, header + 12 + 15)]).toEqual([0x10, 3, 0x3a, 2, 8, 1])
})
