// lowrank merge: folds an adapter into a base model's weights, so that it runs without LoRA.

import type { MergePlanReport } from '../index.js'
import { printable } from './escape.js'
import { ADAPTERS, API_NAMES, OUTPUT, partOf, runMerge, sayAsides, sized, weightedAdapters } from './merge-options.js'
import { choice, defineCommand, type Occurrence, required, toggle, UsageError } from './options.js'
import { MODEL } from './sources.js'
import { bytes, colors, print, printDocument, say, table } from './terminal.js'

export const merge = defineCommand({
  name: 'merge',
  summary: 'fold an adapter into a copy of its base model',
  about: [
    'Writes a new model whose weights contain the adapter: W + scaling · B · A, in the types that the base has.',
    'The base is an .onnx file, a .safetensors file, or a folder. Of a folder with an .onnx the result is an .onnx too, so that',
    '`lowrank generate` runs it; --format safetensors or both writes the checkpoint.',
  ].join('\n'),
  examples: [
    'lowrank merge --base models/union-3m --adapter out/scripture --out out/scripture-model',
    'lowrank merge --base models/union-3m --adapter out/scripture --adapter out/whaling --weight 0.5 --format safetensors --out out/both',
    'lowrank merge --base models/union-3m/model.safetensors --adapter out/scripture --out out/merged.safetensors',
  ],
  options: {
    base: required(MODEL, 'model to fold into'),
    ...ADAPTERS,
    out: required('DIR|FILE', 'result: a folder that runs on its own, or a file ending in .onnx or .safetensors'),
    tied: choice(
      ['refuse', 'untie', 'keep'],
      'what to do when the adapter changes one of two tied embeddings; default refuse, in an .onnx untie',
    ),
    allowMissing: toggle('go on when a head needs tensors that neither base nor adapter has'),
    outDtype: sized('f32|f16|bf16|keep', 'type of the weights that are written; default keep', readDtype),
    dryRun: toggle('check everything and show the plan, but write nothing'),
    ...OUTPUT,
  },
  apiNames: API_NAMES,
  async run({ dryRun, json, maxShardSize, shards, adapter: _adapter, weight: _weight, ...rest }, { occurrences }) {
    const adapters = weightedAdapters(occurrences)
    const options = { ...rest, adapters, maxShardBytes: maxShardSize, share: shards }
    const node = await import('../node.js')
    if (dryRun) return showPlan(await node.planMerge(options), json)
    return runMerge(
      json,
      (run) => node.merge({ ...options, ...run }),
      ({ layers }) => {
        const rows = layers.map(({ name, relativeChange }) => [name, relativeChange])
        if (rows.length > 0) print(table([['layer', 'change ‖ΔW‖/‖W‖'], ...rows]))
      },
      partOf({ shards, finish: rest.finish }),
    )
  },
})

function readDtype({ flag, value }: Occurrence): 'F32' | 'F16' | 'BF16' | 'keep' {
  const dtype = value.toUpperCase()
  if (dtype === 'F32' || dtype === 'F16' || dtype === 'BF16') return dtype
  if (dtype === 'KEEP') return 'keep'
  throw new UsageError(`${flag} is one of f32, f16, bf16, keep; got '${value}'`)
}

function showPlan(plan: MergePlanReport, json: boolean): number {
  if (json) printDocument({ ...plan, dryRun: true })
  else print(plan.layers.map(({ name }) => printable(name)).join('\n'))
  const { out, tensors, changed } = plan
  sayAsides(plan)
  say(`Would write ${colors.bold(out)}: ${bytes(plan.bytes)}, ${changed} of ${tensors} tensors changed`)
  return 0
}
