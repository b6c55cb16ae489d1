// lowrank unmerge: removes adapters from a merged model, and says how close that comes to the original.

import type { UnmergeReport } from '../../index.js'
import { flags } from '../flags.js'
import { defineCommand } from '../options.js'
import { print, say, table, thousands } from '../show/terminal.js'
import { ADAPTERS, API_NAMES, OUTPUT, runMerge, weightedAdapters } from './merge-options.js'

export const unmerge = defineCommand({
  name: 'unmerge',
  summary: 'remove an adapter from a merged model',
  about: [
    'Writes the base again: W − scaling · B · A. Give the same adapters as for the merge, with the same --weight.',
    'fp16 and bf16 weights do not come back exactly, because the merge rounded them. For a safetensors checkpoint, --original counts the differences.',
  ].join('\n'),
  examples: [
    'lowrank unmerge --merged out/scripture-model --adapter out/scripture --out out/base-onnx',
    'lowrank unmerge --merged out/scripture-mix --adapter out/scripture --adapter tests/golden/peft/f32 --weight 0.5 --out out/base --original models/union-3m',
  ],
  subject: ['merged'],
  options: {
    ...flags('UnmergeOptions', 'merged'),
    ...ADAPTERS,
    ...flags('UnmergeOptions', 'out', 'original', 'tied'),
    ...OUTPUT,
  },
  apiNames: API_NAMES,
  async run({ merged, out, json, maxShardSize, shard, adapter: _adapter, weight: _weight, ...rest }, { occurrences }) {
    const options = { ...rest, maxShardBytes: maxShardSize, share: shard }
    const adapters = weightedAdapters(occurrences)
    const node = await import('../../node.js')
    return runMerge(json, (run) => node.unmerge({ ...options, merged, adapters, out, ...run }), showDifferences)
  },
})

function showDifferences({ differences }: UnmergeReport): void {
  if (differences === undefined) return
  const { differing, values, largest, tensors } = differences
  if (differing === 0) {
    say(`All ${thousands(values)} values are equal to the original`)
    return
  }
  const rows = tensors.map((tensor) => [tensor.name, tensor.differing, tensor.values, tensor.largest, tensor.steps])
  print(table([['tensor', 'differing', 'values', 'largest |Δ|', 'steps of the type'], ...rows]))
  const share = ((100 * differing) / values).toPrecision(3)
  say(
    `${thousands(differing)} of ${thousands(values)} values (${share} %) differ from the original. Largest difference: ${largest.toPrecision(3)}`,
  )
}
