// lowrank merge: adds an adapter to the base's weights, so that the result runs without LoRA. lowrank unmerge removes
// adapters again.

import type { LayerChange, MergePlanReport } from '../../../api/index.js'
import { flags } from '../flags.js'
import { defineCommand, MODEL, text, toggle } from '../options.js'
import { baseOfAdapter } from '../run/with-session.js'
import { bytes, colors, print, printable, printDocument, say, table } from '../show/terminal.js'
import { ADAPTERS, API_NAMES, changesIn, OUTPUT, runMerge, sayAsides, weightedAdapters } from './merge-options.js'

export const merge = defineCommand({
  name: 'merge',
  summary: 'write a copy of a model with the adapter inside',
  about: [
    'Writes a new model whose weights contain the adapter: W + scaling · B · A, in the weight types of the base.',
    'The base is an .onnx file, a .safetensors file, or a folder. If the folder has an .onnx file, the result is an .onnx file too:',
    '`lowrank generate` runs it. --format safetensors writes the checkpoint.',
  ].join('\n'),
  examples: [
    'lowrank merge --adapter out/scripture --out out/scripture-model',
    'lowrank merge --base models/union-3m --adapter out/scripture --adapter tests/golden/peft/f32 --weight 0.5 --format safetensors --out out/scripture-mix',
    'lowrank merge --base models/union-3m/model.safetensors --adapter out/scripture --out out/merged.safetensors',
  ],
  subject: ['base'],
  options: {
    base: text(MODEL, 'model that the adapter is merged into; default: the base that the first adapter names'),
    ...ADAPTERS,
    ...flags('MergeOptions', 'out', 'tied', 'outDtype'),
    dryRun: toggle('check everything and show the plan; write nothing'),
    verbose: toggle('show the change of each layer, not only the largest ones'),
    ...OUTPUT,
  },
  apiNames: API_NAMES,
  async run({ dryRun, verbose, json, maxShardSize, adapter: _adapter, weight: _weight, ...rest }, { occurrences }) {
    const adapters = weightedAdapters(occurrences)
    const node = await import('../../../api/node.js')
    const base = rest.base ?? (await baseOfAdapter(adapters[0].adapter))
    const options = { ...rest, base, adapters, maxShardBytes: maxShardSize }
    if (dryRun) return showPlan(await node.planMerge(options), json)
    return runMerge(
      json,
      (run) => node.merge({ ...options, ...run }),
      ({ layers }) => showChanges(layers, verbose),
    )
  },
})

const SHOWN_CHANGES = 10

function showChanges(layers: readonly LayerChange[], isVerbose: boolean): void {
  if (layers.length === 0) return
  const sorted = layers.toSorted((a, b) => (b.relativeChange ?? -1) - (a.relativeChange ?? -1))
  const known = sorted.flatMap(({ relativeChange }) => relativeChange ?? [])
  if (known.length > 1) {
    const [most, middle, least] = [known[0], known[known.length >> 1], known[known.length - 1]].map((x) =>
      x.toPrecision(3),
    )
    say(`Change ‖ΔW‖/‖W‖ of ${layers.length} layers: from ${least} to ${most}, in the middle ${middle}`)
  }
  const shown = isVerbose ? layers : sorted.slice(0, SHOWN_CHANGES)
  const heading = shown.length < layers.length ? `${SHOWN_CHANGES} largest changes` : 'layer'
  const rows = shown.map(({ name, relativeChange }) => [name, relativeChange ?? '–'])
  print(table([[heading, 'change ‖ΔW‖/‖W‖'], ...rows]))
  if (shown.length < layers.length) say(`--verbose shows all ${layers.length} layers`)
}

function showPlan(plan: MergePlanReport, json: boolean): number {
  if (json) printDocument({ ...plan, dryRun: true })
  else print(plan.layers.map(({ name }) => printable(name)).join('\n'))
  sayAsides(plan)
  say(`Would write ${colors.bold(plan.out)}: ${bytes(plan.bytes)}, ${changesIn(plan)}`)
  return 0
}

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
  options: { ...flags('UnmergeOptions', 'merged'), ...ADAPTERS, ...flags('UnmergeOptions', 'out'), ...OUTPUT },
  apiNames: API_NAMES,
  async run({ merged, out, json, maxShardSize, adapter: _adapter, weight: _weight, ...rest }, { occurrences }) {
    const options = { ...rest, maxShardBytes: maxShardSize }
    const adapters = weightedAdapters(occurrences)
    const node = await import('../../../api/node.js')
    return runMerge(json, (run) => node.unmerge({ ...options, merged, adapters, out, ...run }))
  },
})
