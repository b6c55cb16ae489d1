// lowrank combine: several adapters as one.

import { ADAPTER_OUTPUT, RANKS, writeAdapter } from './adapter-output.js'
import { ADAPTERS, weightedAdapters } from './merge-options.js'
import { choice, decimal, defineCommand, integer, text, toggle } from './options.js'
import { MODEL } from './sources.js'

const TYPES = [
  'exact',
  'svd',
  'cat',
  'linear',
  'ties',
  'ties_svd',
  'dare_linear',
  'dare_linear_svd',
  'dare_ties',
  'dare_ties_svd',
  'magnitude_prune',
  'magnitude_prune_svd',
] as const

export const combine = defineCommand({
  name: 'combine',
  summary: 'make one adapter from several adapters',
  about: [
    'Adds the changes of adapters for the same base. By default, the result is exactly their weighted sum. Its rank can be as high as the sum of all ranks.',
    '--rank, --energy, --error or --ratio give the best approximation with a lower rank. --combination-type chooses another method, such as those of PEFT.',
  ].join('\n'),
  examples: [
    'lowrank combine --adapter tests/golden/peft/f32 --adapter tests/golden/peft/rslora --weight 0.5 --rank 8 --out out/combined',
    'lowrank combine --adapter tests/golden/peft/f32 --adapter tests/golden/peft/bf16 --combination-type ties --density 0.5 --out out/ties',
  ],
  options: {
    ...ADAPTERS,
    base: text(MODEL, 'the model of the adapters; only for DoRA adapters, with --rank, --energy, --error or --ratio'),
    combinationType: choice(
      TYPES,
      'exact: the sum. svd: the sum, at the largest rank of the adapters. cat: the sum, with the factors beside each other. ' +
        'The others: as in PEFT. Default: exact, with --peft-compatible svd',
    ),
    ...RANKS,
    density: decimal('for ties, dare and magnitude_prune: share of the values to keep, in (0, 1]'),
    majoritySignMethod: choice(
      ['total', 'frequency'],
      'for ties and dare_ties: how the sign of a value is chosen; default: total',
    ),
    seed: integer('for dare: the same seed keeps the same values; default: 0', { least: 0 }),
    peftCompatible: toggle(
      'give exactly the result of PEFT’s add_weighted_adapter; for rsLoRA this result is too large',
    ),
    ...ADAPTER_OUTPUT,
  },
  async run({ adapter: _adapter, weight: _weight, out, outDtype, json, ...settings }, { occurrences }) {
    const node = await import('../node.js')
    const adapters = weightedAdapters(occurrences)
    return writeAdapter({ out, outDtype, json }, (run) => node.combine({ adapters, ...settings, ...run }))
  },
})
