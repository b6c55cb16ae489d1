// A run that is stopped at any moment, and resumed.

import { it } from 'vitest'
import { loadModel } from '../../src/api/node.js'
import { checkStops } from './stops.js'
import { folder, module } from './tiny.js'

it('is resumed to the same bytes, wherever it was stopped', { timeout: 600_000 }, async () => {
  const model = await loadModel(folder, { runtime: { module } })
  try {
    await checkStops(model)
  } finally {
    await model.close()
  }
})
