// A run that is stopped at a few moments of each kind, and resumed. stops.slow.test.ts tries all moments.

import { afterAll, beforeAll, it } from 'vitest'
import { loadModel, type Model } from '../../src/api/node.js'
import { checkStops } from './stops.js'
import { folder, module } from './tiny.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(folder, { runtime: { module } })
})
afterAll(() => model.close())

it('is resumed to the same bytes', () =>
  checkStops(model, (moment, index) => moment === 'evaluate 1/2' || index % 28 === 0))
