// lowrank merge: folds an adapter into a base model's weights, so that it runs without LoRA.

import { type MergePlanReport, merge as mergeByPath, planMerge } from '../node.js'
import { EXIT_INTERRUPTED, interruptible } from './interrupt.js'
import { defineCommand, type Occurrence, readNumber, repeated, required, toggle, UsageError } from './options.js'
import { bytes, colors, Progress, peakRssBytes, print, printDocument, say, table } from './terminal.js'

export const merge = defineCommand({
  name: 'merge',
  summary: 'fold an adapter into a copy of its base model',
  about: [
    'Writes a new model whose weights contain the adapter: W + scaling · B · A, in the types that the base has.',
    'The base is an .onnx file, a .safetensors file, or a folder: its model.safetensors, or without one its ONNX model.',
  ].join('\n'),
  examples: [
    'lowrank merge --base models/union-3m/onnx/model.onnx --adapter out/scripture --out out/scripture-model',
    'lowrank merge --base models/union-3m --adapter a --adapter b --weight 0.5 --out out/both',
    'lowrank merge --base models/union-3m/model.safetensors --adapter out/scripture --out out/merged.safetensors',
  ],
  options: {
    base: required('DIR|FILE', 'model to fold into'),
    adapter: repeated('DIR', 'adapter folder; several are added up (checkpoints only)'),
    weight: repeated('W', 'factor on the adapter named before it; default 1'),
    out: required('DIR|FILE', 'result: a folder that runs on its own, or a file ending in .onnx or .safetensors'),
    dryRun: toggle('check everything and show the plan, but write nothing'),
    overwrite: toggle('replace the merge in --out, if a merge wrote it'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ base, out, dryRun, overwrite, json }, { occurrences }) {
    const adapters = weightedAdapters(occurrences)
    const options = { base, adapters, out, overwrite }
    if (dryRun) return showPlan(await planMerge(options), json)
    const progress = new Progress()
    const startedAt = performance.now()
    try {
      const report = await interruptible('Stopping; nothing is left of the result.', (signal) =>
        mergeByPath({
          ...options,
          signal,
          onProgress({ writtenBytes, totalBytes }) {
            const megabytes = (value: number) => Math.round(Math.min(value, totalBytes) / 1e6)
            const rate = (writtenBytes / (performance.now() - startedAt)) * 1000
            progress.update(megabytes(writtenBytes), megabytes(totalBytes), ` MB  ${bytes(rate)}/s`)
          },
        }),
      )
      progress.end()
      if (json) printDocument({ ...report, peakRssBytes: peakRssBytes() })
      else {
        const rows = report.layers.map(({ name, relativeChange }) => [name, relativeChange])
        print(table([['layer', 'change ‖ΔW‖/‖W‖'], ...rows]))
      }
      say(
        `Wrote ${colors.bold(report.out)}: ${bytes(report.bytes)}, ` +
          `${report.changed} of ${report.tensors} tensors changed, ${report.seconds.toFixed(1)} s`,
      )
      return 0
    } catch (error) {
      if (!(error instanceof DOMException && error.name === 'AbortError')) throw error
      return EXIT_INTERRUPTED
    } finally {
      progress.end()
    }
  },
})

/** Each --adapter with the --weight that follows it. */
function weightedAdapters(occurrences: readonly Occurrence[]): { adapter: string; weight?: number }[] {
  const adapters: { adapter: string; weight?: number }[] = []
  for (const occurrence of occurrences) {
    if (occurrence.flag === '--adapter') adapters.push({ adapter: occurrence.value })
    if (occurrence.flag !== '--weight') continue
    const adapter = adapters.at(-1)
    if (adapter === undefined) throw new UsageError('--weight W comes after the --adapter that it belongs to')
    if (adapter.weight !== undefined) throw new UsageError(`${adapter.adapter} has two weights`)
    adapter.weight = readNumber(occurrence)
  }
  if (adapters.length === 0) throw new UsageError('--adapter DIR is missing')
  return adapters
}

function showPlan(plan: MergePlanReport, json: boolean): number {
  if (json) printDocument({ ...plan, dryRun: true })
  else print(plan.layers.map(({ name }) => name).join('\n'))
  const { out, tensors, changed } = plan
  say(`Would write ${colors.bold(out)}: ${bytes(plan.bytes)}, ${changed} of ${tensors} tensors changed`)
  return 0
}
