// lowrank unmerge: removes adapters from a merged model, and says how close that comes to the original.

import type { UnmergeReport } from '../index.js'
import { ADAPTERS, API_NAMES, OUTPUT, partOf, runMerge, weightedAdapters } from './merge-options.js'
import { choice, defineCommand, required, text } from './options.js'
import { MODEL } from './sources.js'
import { print, say, table, thousands } from './terminal.js'

export const unmerge = defineCommand({
  name: 'unmerge',
  summary: 'remove an adapter from a merged model',
  about: [
    'Writes W − scaling · B · A for the weights that the adapters changed; give those that were merged, with their weights.',
    'F16 and BF16 cannot come back exactly, because the merge rounded: with --original the differences of a checkpoint are counted.',
  ].join('\n'),
  examples: [
    'lowrank unmerge --merged out/both --adapter out/scripture --adapter out/whaling --weight 0.5 --out out/base',
    'lowrank unmerge --merged out/both --adapter out/scripture --out out/whaling-only --original models/union-3m',
  ],
  options: {
    merged: required(MODEL, 'model that the adapters were merged into'),
    ...ADAPTERS,
    out: required('DIR|FILE', 'result: a folder, or a file ending in .onnx or .safetensors'),
    original: text(MODEL, 'the base as it was, to count what differs from it'),
    tied: choice(['refuse', 'keep'], 'keep: the merge changed tied embeddings for both uses; default refuse'),
    ...OUTPUT,
  },
  apiNames: API_NAMES,
  async run({ merged, out, json, maxShardSize, shards, adapter: _adapter, weight: _weight, ...rest }, { occurrences }) {
    const options = { ...rest, maxShardBytes: maxShardSize, share: shards }
    const adapters = weightedAdapters(occurrences)
    const node = await import('../node.js')
    return runMerge(
      json,
      (run) => node.unmerge({ ...options, merged, adapters, out, ...run }),
      showDifferences,
      partOf({ shards, finish: rest.finish }),
    )
  },
})

function showDifferences({ differences }: UnmergeReport): void {
  if (differences === undefined) return
  const { differing, values, largest, steps, tensors } = differences
  if (differing === 0) {
    say(`All ${thousands(values)} values are the original's`)
    return
  }
  const rows = tensors.map((tensor) => [tensor.name, tensor.differing, tensor.values, tensor.largest, tensor.steps])
  print(table([['tensor', 'differing', 'values', 'largest |Δ|', 'steps of the type'], ...rows]))
  const share = ((100 * differing) / values).toPrecision(3)
  say(
    `${thousands(differing)} of ${thousands(values)} values (${share} %) differ from the original's, ` +
      `by at most ${largest.toPrecision(3)} or ${thousands(steps)} steps of their type`,
  )
}
