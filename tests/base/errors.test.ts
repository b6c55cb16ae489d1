// Hints of errors.

import { expect, test } from 'vitest'
import { nearMisses } from '../../src/base/errors.js'

test('near misses come best first, names that contain each other before all', () => {
  expect(nearMisses('q_proj', ['x_prj', 'k_proj', 'model.q_proj', 'lm_head'])).toEqual([
    'model.q_proj',
    'k_proj',
    'x_prj',
  ])
  expect(nearMisses('rank', ['something else'])).toEqual([])
})

test('names of a hostile length are not compared', () => {
  const started = performance.now()
  const long = 'x'.repeat(1_000_000)
  expect(nearMisses(long, ['x', 'y', `${long}y`])).toEqual([])
  expect(nearMisses('q', [long, 'q1'])).toEqual(['q1'])
  expect(performance.now() - started).toBeLessThan(1000)
})
