// Shows progress on standard error, if the program does not listen to events. Opening a session shows nothing.

import { sumOfDownloads } from '../../core/base/downloads.js'
import type { OnDownload } from '../../files/io/hub/directory.js'
import type { MergeEvents } from '../../merge/settings.js'
import type { TrainEvents } from '../../train/report.js'

const INTERVAL_MS = 1000
const QUIET_MS = 2000
const BAR_WIDTH = 30

const isTerminal = () => process.stderr.isTTY === true
const line = (text: string, isLast = true) => void process.stderr.write(`\r\x1b[2K${text}${isLast ? '\n' : ''}`)

/** Returns a function that draws a bar, once the work has taken 2 s. */
function bar(): (what: string, done: number, total: number) => void {
  let drawnAt = performance.now() + QUIET_MS - INTERVAL_MS
  let isDrawn = false
  return (what, done, total) => {
    const now = performance.now()
    const isLast = done >= total
    if (isLast ? !isDrawn : now - drawnAt < INTERVAL_MS) return
    drawnAt = now
    isDrawn = !isLast
    const share = total === 0 ? 1 : done / total
    const filled = '█'.repeat(Math.round(share * BAR_WIDTH)).padEnd(BAR_WIDTH, '░')
    line(`lowrank: ${what} ${filled} ${Math.floor(100 * share)} % of ${(total / 1e6).toFixed(1)} MB`, isLast)
  }
}

export function watchMerge(): MergeEvents | undefined {
  if (!isTerminal()) return undefined
  const draw = bar()
  return { progress: ({ writtenBytes, totalBytes }) => draw('merging', writtenBytes, totalBytes) }
}

export function watchDownloads(): OnDownload | undefined {
  if (!isTerminal()) return undefined
  const add = sumOfDownloads()
  let draw = bar()
  return (download) => {
    const { files, isNew, receivedBytes, byteLength } = add(download)
    if (isNew && files === 1) draw = bar()
    const what = files === 1 ? download.name.replaceAll(/\p{Cc}/gu, ' ') : `${files} files`
    draw(`loading ${what}`, receivedBytes, byteLength)
  }
}

/** Returns listeners that print progress, or undefined if standard error is not a terminal. */
export function watchOnTerminal(): TrainEvents | undefined {
  if (!isTerminal()) return undefined
  let drawnAt = 0
  return {
    stage(stage) {
      if (stage === 'encode') line('lowrank: reading the data …')
      if (stage === 'prepare') line('lowrank: building the training graph …')
      if (stage === 'save') line('lowrank: saving …')
    },
    step({ step, totalSteps, loss, secondsLeft }) {
      const now = performance.now()
      if (now - drawnAt < INTERVAL_MS && step < totalSteps) return
      drawnAt = now
      const left = step < totalSteps ? `, ${Math.ceil(secondsLeft)} s left` : ''
      line(`lowrank: step ${step} of ${totalSteps}, loss ${loss.toFixed(3)}${left}`, step === totalSteps)
    },
    evaluation: ({ step, loss }) => line(`lowrank: evaluation loss after step ${step}: ${loss.toFixed(3)}`),
    sample({ samples }) {
      for (const { text } of samples) line(`lowrank: ${text.replaceAll(/\p{Cc}/gu, ' ')}`)
    },
    note: (message) => line(`lowrank: ${message}`),
    warning: (message) => line(`lowrank: ${message}`),
  }
}
