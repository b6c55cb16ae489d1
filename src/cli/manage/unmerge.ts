// lowrank unmerge: removes adapters from a merged model.

import { flags } from '../flags.js'
import { defineCommand } from '../options.js'
import { ADAPTERS, API_NAMES, OUTPUT, runMerge, weightedAdapters } from './merge-options.js'

export const unmerge = defineCommand({
  name: 'unmerge',
  summary: 'remove an adapter from a merged model',
  about: [
    'Writes the base again: W − scaling · B · A. Give the same adapters as for the merge, with the same --weight.',
    'fp16 and bf16 weights do not come back exactly, because the merge rounded them.',
  ].join('\n'),
  examples: [
    'lowrank unmerge --merged out/scripture-model --adapter out/scripture --out out/base-onnx',
    'lowrank unmerge --merged out/scripture-mix --adapter out/scripture --adapter tests/golden/peft/f32 --weight 0.5 --out out/base',
  ],
  subject: ['merged'],
  options: {
    ...flags('UnmergeOptions', 'merged'),
    ...ADAPTERS,
    ...flags('UnmergeOptions', 'out'),
    ...OUTPUT,
  },
  apiNames: API_NAMES,
  async run({ merged, out, json, maxShardSize, shard, adapter: _adapter, weight: _weight, ...rest }, { occurrences }) {
    const options = { ...rest, maxShardBytes: maxShardSize, share: shard }
    const adapters = weightedAdapters(occurrences)
    const node = await import('../../node.js')
    return runMerge(json, (run) => node.unmerge({ ...options, merged, adapters, out, ...run }))
  },
})
