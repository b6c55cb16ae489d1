// The last line about a run's losses: from the first to the last, whatever is between them.

import { expect, it, vi } from 'vitest'
import { showCurve } from '../../../src/app/cli/show/curve.js'

it('shows the losses at the start and at the end', () => {
  const wasTerminal = process.stderr.isTTY
  const write = vi.spyOn(process.stderr, 'write').mockReturnValue(true)
  process.stderr.isTTY = true
  try {
    showCurve([2, 5, 3, 1.5])
    expect(write.mock.calls.join('')).toMatch(/^Loss 2\.000 .*▂█▄▁.* 1\.500\n$/)
  } finally {
    process.stderr.isTTY = wasTerminal
    write.mockRestore()
  }
})
