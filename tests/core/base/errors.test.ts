// Hints of errors.

import { expect, test } from 'vitest'
import { FormatError } from '../../../src/api/node.js'
import { nearMisses } from '../../../src/core/base/errors.js'

test('near misses come best first, names that contain each other before all', () => {
  expect(nearMisses('q_proj', ['x_prj', 'k_proj', 'model.q_proj', 'lm_head'])).toEqual([
    'model.q_proj',
    'k_proj',
    'x_prj',
  ])
  expect(nearMisses('rank', ['something else'])).toEqual([])
})

test('names of a hostile length are not compared', () => {
  const long = 'x'.repeat(1_000_000)
  expect(nearMisses(long, ['x', 'y', `${long}y`])).toEqual([])
  expect(nearMisses('q', [long, 'q1'])).toEqual(['q1'])
})

test('of very many names only the first are compared', () => {
  const names = Array.from({ length: 20_000 }, (_, i) => `${'x'.repeat(480)}${i}`)
  expect(nearMisses(`${'x'.repeat(480)}19999`, names)).not.toContain(names[19999])
})

test('a message shows the beginning of a part that has megabytes', () => {
  const { message, where } = new FormatError({ where: 'x'.repeat(1_000_000), what: 'wrong', got: 'y'.repeat(2001) })
  expect(message).toBe(`${'x'.repeat(2000)}…: wrong; got ${'y'.repeat(2000)}…`)
  expect(where).toHaveLength(1_000_000)
})
