import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { concatBytes } from '../../src/base/bytes.js'
import { eventRecord, fileHeader, type LoggedEvent, restartRecord } from '../../src/formats/event-file.js'

it('writes the bytes that TensorBoard writes', () => {
  const golden = JSON.parse(readFileSync('tests/golden/event-file.json', 'utf8')) as {
    start: number
    restart: number
    events: LoggedEvent[]
    file: string
  }
  const { start, restart, events, file } = golden
  const records = [fileHeader(start), restartRecord(start, restart), ...events.map(eventRecord)]
  expect(Buffer.from(concatBytes(records)).equals(Buffer.from(file, 'base64'))).toBe(true)
})
