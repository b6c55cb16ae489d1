// lowrank merge: folds an adapter into a base model's weights, so that it runs without LoRA.

import { UnsupportedError } from '../index.js'
import { merge as mergeByPath } from '../node.js'
import { EXIT_INTERRUPTED, interruptible } from './interrupt.js'
import { decimal, defineCommand, repeated, required, toggle, UsageError } from './options.js'
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
    'lowrank merge --base models/union-3m/model.safetensors --adapter out/scripture --out out/merged.safetensors',
  ],
  options: {
    base: required('DIR|FILE', 'model to fold into'),
    adapter: repeated('DIR', 'adapter folder'),
    weight: decimal('factor on an adapter: only 1 so far', 1),
    out: required('DIR|FILE', 'result: a folder that runs on its own, or a file ending in .onnx or .safetensors'),
    dryRun: toggle('compute and check everything, but write nothing'),
    overwrite: toggle('replace the merge in --out, if lowrank wrote that folder'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ base, adapter: adapters, weight, out, dryRun, overwrite, json }) {
    if (adapters.length === 0) throw new UsageError('--adapter DIR is missing')
    if (adapters.length > 1 || (weight ?? 1) !== 1) {
      throw new UnsupportedError({
        where: adapters.length > 1 ? '--adapter' : '--weight',
        what: 'merging several adapters, or one with a weight, is not built yet',
        expected: 'one adapter with weight 1',
        hint: 'Merge one after the other into the result',
      })
    }
    const progress = new Progress()
    const startedAt = performance.now()
    try {
      const report = await interruptible('Stopping; nothing is left of the result.', (signal) =>
        mergeByPath({
          base,
          adapter: adapters[0],
          out,
          dryRun,
          overwrite,
          signal,
          onProgress({ writtenBytes, totalBytes }) {
            const megabytes = (value: number) => Math.round(Math.min(value, totalBytes) / 1e6)
            const rate = (writtenBytes / (performance.now() - startedAt)) * 1000
            progress.update(megabytes(writtenBytes), megabytes(totalBytes), ` MB  ${bytes(rate)}/s`)
          },
        }),
      )
      progress.end()
      if (!json) {
        const rows = report.layers.map(({ name, relativeChange }) => [name, relativeChange])
        print(table([['layer', 'change ‖ΔW‖/‖W‖'], ...rows]))
      }
      const verb = dryRun ? 'Would write' : 'Wrote'
      say(
        `${verb} ${colors.bold(report.out)}: ${bytes(report.bytes)}, ` +
          `${report.changed} of ${report.tensors} tensors changed, ${report.seconds.toFixed(1)} s`,
      )
      if (json) printDocument({ ...report, peakRssBytes: peakRssBytes(), dryRun })
      return 0
    } catch (error) {
      if (!(error instanceof DOMException && error.name === 'AbortError')) throw error
      return EXIT_INTERRUPTED
    } finally {
      progress.end()
    }
  },
})
