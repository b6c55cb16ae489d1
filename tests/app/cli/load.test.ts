// The live line of `lowrank serve` in a terminal.

import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { showLoad } from '../../../src/app/cli/show/load.js'

const { isTTY, write } = process.stderr
let written: string[]
beforeEach(() => {
  vi.useFakeTimers()
  written = []
  process.stderr.write = ((text: string) => written.push(text)) as unknown as typeof write
})
afterEach(() => {
  vi.useRealTimers()
  Object.assign(process.stderr, { isTTY, write })
})

/** The server's metrics after a number of tokens. */
const metricsAfter = (tokens: number) =>
  [
    'vllm:num_requests_running 3',
    'vllm:num_requests_waiting 2',
    'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 99',
    'vllm:time_to_first_token_seconds_count 3',
    `vllm:inter_token_latency_seconds_count ${tokens - 3}`,
  ].join('\n')

it('tells once a second what runs, what waits, and tokens a second', async () => {
  process.stderr.isTTY = true
  let tokens = 0
  const end = showLoad(async () => {
    tokens += 50
    return metricsAfter(tokens)
  })
  await vi.advanceTimersByTimeAsync(2000)
  end()
  await vi.advanceTimersByTimeAsync(2000)
  expect(written).toEqual([
    '\r\x1b[K3 running, 2 waiting, 0 tokens/s\r',
    '\r\x1b[K3 running, 2 waiting, 50 tokens/s\r',
    '\x1b[K',
  ])
})

it('writes nothing if stderr is not a terminal', async () => {
  process.stderr.isTTY = false
  const end = showLoad(() => Promise.reject(new Error('not asked for')))
  await vi.advanceTimersByTimeAsync(2000)
  end()
  expect(written).toEqual([])
})
