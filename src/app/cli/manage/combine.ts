// lowrank combine: makes one adapter of several.

import { flags } from '../flags.js'
import { defineCommand } from '../options.js'
import { ADAPTER_OUTPUT, writeAdapter } from './adapter-output.js'
import { ADAPTERS, weightedAdapters } from './merge-options.js'

export const combine = defineCommand({
  name: 'combine',
  summary: 'make one adapter from several adapters',
  about: [
    'Adds the changes of adapters for the same base. By default, the result is exactly their weighted sum. Its rank can be as high as the sum of all ranks.',
    '--rank or --energy gives the best approximation with a lower rank. --combination-type linear adds the factors themselves, as PEFT can.',
  ].join('\n'),
  examples: [
    'lowrank combine --adapter tests/golden/peft/f32 --adapter tests/golden/peft/rslora --weight 0.5 --rank 8 --out out/combined',
    'lowrank combine --adapter tests/golden/peft/f32 --adapter tests/golden/peft/bf16 --combination-type linear --out out/linear',
  ],
  subject: ['adapter'],
  options: { ...ADAPTERS, ...flags('CombineOptions'), ...ADAPTER_OUTPUT },
  async run({ adapter: _adapter, weight: _weight, out, outDtype, json, ...settings }, { occurrences }) {
    const node = await import('../../../api/node.js')
    const adapters = weightedAdapters(occurrences)
    return writeAdapter({ out, outDtype, json }, (run) => node.combine({ adapters, ...settings, ...run }))
  },
})
