// train --gate: a trained adapter takes the place of the old one only if it is not worse on records that are held out.

import type { Source, TrainOptions, TrainResult } from '../../index.js'
import { EXIT_INTERRUPTED } from '../show/interrupt.js'
import { colors, printDocument, say } from '../show/terminal.js'

interface GateOptions extends Partial<TrainOptions> {
  readonly model: TrainOptions['model']
  readonly folder: string
  readonly gate: string
  readonly json: boolean
}

export async function passGate({ adapter, report }: TrainResult, options: GateOptions): Promise<number> {
  const { model, dtype, folder, gate, json, columns, maxLength, chatTemplate, chatTemplateArgs, taskOptions } = options
  if (report.interrupted) {
    say(`Stopped: ${colors.bold(folder)} did not change.`)
    return EXIT_INTERRUPTED
  }
  const node = await import('../../node.js')
  const { models, records } = await node.evaluate({
    ...{ model: model as Source, dtype, data: gate, task: report.task as TrainOptions['task'], taskOptions },
    ...{ columns, maxLength, chatTemplate, chatTemplateArgs, device: options.device, threads: options.threads },
    adapters: { before: await node.loadAdapter(folder), after: adapter },
    against: 'before',
  })
  const difference = models.find(({ name }) => name === 'after')!.differences!.loss
  const { value, low, high } = difference
  const isReplaced = value <= 0
  if (isReplaced) await node.saveAdapter(adapter, folder)
  const interval = low === null || high === null ? '' : ` (95 %: ${low.toFixed(4)} to ${high.toFixed(4)})`
  const fact = `the loss on ${records} held-out records changed by ${value.toFixed(4)}${interval}`
  say(
    isReplaced
      ? `${colors.bold(folder)} was replaced: ${fact}.`
      : `${colors.bold(folder)} stays as it was: ${fact}, which is worse.`,
  )
  if (json) printDocument({ ...report, gate: { records, difference, isReplaced }, out: folder })
  return 0
}
