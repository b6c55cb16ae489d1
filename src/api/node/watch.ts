// Prints the progress of a training to standard error, if the program does not listen to events.

import type { TrainEvents } from '../../train/train-report.js'

const INTERVAL_MS = 1000

/** Returns listeners that print progress, or undefined if standard error is not a terminal. */
export function watchOnTerminal(): TrainEvents | undefined {
  const { stderr } = process
  if (stderr.isTTY !== true) return undefined
  let drawnAt = 0
  const line = (text: string, isLast = true) => void stderr.write(`\r\x1b[2K${text}${isLast ? '\n' : ''}`)
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
