// The waiting time before a request is sent again.

import { afterEach, expect, test, vi } from 'vitest'
import { type HubAnswer, type HubConnection, pause } from '../../../../src/files/io/hub/request.js'

const connection = { endpoint: 'https://hub.example', retryMs: 100 } as HubConnection
const NOW = Date.UTC(2026, 0, 1)

function answer(retryAfter: string): HubAnswer {
  return { response: { headers: new Headers({ 'retry-after': retryAfter }) } } as unknown as HubAnswer
}

/** Returns the waiting time in milliseconds. The test moves the clock. */
async function waited(retryAfter: string, attempt = 1): Promise<number> {
  vi.useFakeTimers({ now: NOW })
  const paused = pause(connection, attempt, answer(retryAfter))
  await vi.runAllTimersAsync()
  await paused
  return Date.now() - NOW
}

afterEach(() => {
  vi.useRealTimers()
})

test.each([
  ['seconds', '7', 7000],
  ['a date', new Date(NOW + 42_000).toUTCString(), 42_000],
  ['a date that is over', new Date(NOW - 42_000).toUTCString(), 0],
  ['no time', 'soon', 100],
])('as long as the server asks: %s', async (_, retryAfter, expected) => {
  expect(await waited(retryAfter)).toBe(expected)
})

test('twice as long with each attempt, if the server asks nothing', async () => {
  expect([await waited('', 1), await waited('', 2), await waited('', 3)]).toEqual([100, 200, 400])
})

test.each([
  ['61', '61 s'],
  [new Date(NOW + 7_200_000).toUTCString(), '7200 s'],
])('a longer time than a minute is told: %s', async (retryAfter, told) => {
  vi.useFakeTimers({ now: NOW })
  await expect(pause(connection, 1, answer(retryAfter))).rejects.toThrow(`the server asks to wait ${told}`)
})
