// What a terminal shows while a command works.

import { stripVTControlCharacters } from 'node:util'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import '../../../src/api/node.js'
import { Progress, showDownloads } from '../../../src/app/cli/show/terminal.js'

const { isTTY } = process.stderr
let written = ''
beforeEach(() => {
  written = ''
  vi.useFakeTimers({ toFake: ['performance'] })
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    written += text
    return true
  })
})
afterEach(() => {
  vi.useRealTimers()
  vi.restoreAllMocks()
  process.stderr.isTTY = isTTY
})

describe('Progress', () => {
  it('tells how much time is left, from what was done since it began', () => {
    process.stderr.isTTY = true
    const progress = new Progress()
    // Bytes that were there before do not count for the speed.
    progress.update(20, 100, ' MB')
    expect(written).not.toContain('left')
    vi.advanceTimersByTime(5000)
    progress.update(60, 100, ' MB')
    expect(written).toMatch(/ 60\/100 MB {2}0:05 left$/)
    progress.update(100, 100, ' MB')
    expect(written).toMatch(/100\/100 MB$/)
  })

  it('is a line now and then where nobody watches', () => {
    process.stderr.isTTY = false
    const progress = new Progress()
    for (let done = 0; done <= 100; done++) {
      progress.update(done, 100, ' MB')
      vi.advanceTimersByTime(100)
    }
    expect(written.split('\n').filter((line) => line !== '')).toEqual([' 50/100 MB  0:05 left', '100/100 MB'])
  })
})

describe('downloads', () => {
  it('begin with a name, a size, and what is here already', () => {
    const show = showDownloads()
    show({ name: 'org/new', byteLength: 99_000_000, receivedBytes: 0 })
    show({ name: 'org/begun', byteLength: 300_000_000, receivedBytes: 100_000_000 })
    const plain = stripVTControlCharacters(written)
    expect(plain).toMatch(/Loading org\/new, 99.0 MB\n/)
    expect(plain).toMatch(/Loading org\/begun, 300 MB, 100 MB of it already here\n/)
  })
})
