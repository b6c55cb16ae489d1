// Lines that people see while files come from the Hub or a web server: name and size before the first byte, then a bar.
// Before a large file, they also see how much memory and disk is free.

import type { DownloadProgress } from '../../index.js'
import { freeForDownloads } from '../../node/free.js'
import { printable } from '../show/escape.js'
import { bytes, colors, Progress, say } from '../show/terminal.js'

/** Smaller files are there before a bar is drawn. */
const MIN_BAR_BYTES = 1_000_000
/** Smaller files find room anywhere. */
const LARGE_BYTES = 100_000_000

export function showDownloads(): (progress: DownloadProgress) => void {
  const shown = new Map<string, { bar: Progress; startedAt: number; before: number }>()
  return ({ name, byteLength, receivedBytes }) => {
    let download = shown.get(name)
    if (download === undefined) {
      const kept = receivedBytes > 0 ? `, of which ${bytes(receivedBytes)} are here` : ''
      const room = byteLength > LARGE_BYTES ? roomLeft() : ''
      say(`Loading ${colors.bold(printable(name))}, ${bytes(byteLength)}${kept}${room}`)
      download = { bar: new Progress(), startedAt: performance.now(), before: receivedBytes }
      shown.set(name, download)
    }
    const { bar, startedAt, before } = download
    if (byteLength >= MIN_BAR_BYTES) {
      const megabytes = (value: number) => Math.round(value / 1e6)
      const rate = ((receivedBytes - before) / Math.max(1, performance.now() - startedAt)) * 1000
      bar.update(megabytes(receivedBytes), megabytes(byteLength), ` MB  ${bytes(rate)}/s`)
    }
    if (receivedBytes < byteLength) return
    bar.end()
    shown.delete(name)
  }
}

function roomLeft(): string {
  const { memory, disk } = freeForDownloads()
  const free = Object.entries({ memory, disk }).filter(([, size]) => Number.isFinite(size))
  return free.length === 0 ? '' : ` (free: ${free.map(([of, size]) => `${bytes(size)} of ${of}`).join(', ')})`
}
