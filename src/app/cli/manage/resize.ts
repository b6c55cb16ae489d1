// lowrank resize: gives an adapter another rank.

import { flags } from '../flags.js'
import { ADAPTER, defineCommand, required } from '../options.js'
import { ADAPTER_OUTPUT, writeAdapter } from './adapter-output.js'

export const resize = defineCommand({
  name: 'resize',
  summary: 'give an adapter a lower rank, and show what is lost',
  about: [
    'Writes an adapter with a lower rank that is as close as possible to the given adapter.',
    'Give --rank. Or give --energy: then lowrank chooses a rank for each layer.',
    'The column "lost" is ‖ΔW − ΔW′‖/‖ΔW‖ of each layer.',
  ].join('\n'),
  examples: [
    'lowrank resize tests/golden/peft/f32 --rank 2 --out out/rank-2',
    'lowrank resize tests/golden/peft/f32 --energy 0.95 --out out/smaller --out-dtype fp16',
  ],
  subject: ['adapter'],
  options: {
    adapter: required(ADAPTER, 'adapter: a folder, or an id on the Hub'),
    ...flags('ResizeOptions'),
    ...ADAPTER_OUTPUT,
  },
  async run({ adapter, rank, energy, ...output }) {
    const node = await import('../../../api/node.js')
    return writeAdapter(output, (run) => node.resize(adapter, { rank, energy, ...run }))
  },
})
