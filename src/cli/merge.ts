// lowrank merge: folds an adapter into a base model's weights, so that it runs without LoRA.

import { type MergePlanReport, merge as mergeByPath, planMerge } from '../node.js'
import { EXIT_INTERRUPTED, interruptible } from './interrupt.js'
import {
  choice,
  defineCommand,
  integer,
  type Occurrence,
  type Option,
  readNumber,
  repeated,
  required,
  toggle,
  UsageError,
} from './options.js'
import { bytes, colors, Progress, peakRssBytes, print, printDocument, say, table } from './terminal.js'

export const merge = defineCommand({
  name: 'merge',
  summary: 'fold an adapter into a copy of its base model',
  about: [
    'Writes a new model whose weights contain the adapter: W + scaling · B · A, in the types that the base has.',
    'The base is an .onnx file, a .safetensors file, or a folder: its safetensors checkpoint, or without one its ONNX model.',
  ].join('\n'),
  examples: [
    'lowrank merge --base models/union-3m/onnx/model.onnx --adapter out/scripture --out out/scripture-model',
    'lowrank merge --base models/union-3m --adapter out/scripture --adapter out/whaling --weight 0.5 --out out/both',
    'lowrank merge --base models/union-3m/model.safetensors --adapter out/scripture --out out/merged.safetensors',
  ],
  options: {
    base: required('DIR|FILE', 'model to fold into'),
    adapter: repeated('DIR', 'adapter folder; several are added up (checkpoints only)'),
    weight: repeated('W', 'factor on the adapter named before it; default 1'),
    out: required('DIR|FILE', 'result: a folder that runs on its own, or a file ending in .onnx or .safetensors'),
    tied: choice(['refuse', 'untie', 'keep'], 'what to do when the adapter changes tied embeddings', 'refuse'),
    dtype: sized('F32|F16|BF16', 'convert all weights', readDtype),
    maxShardSize: sized('SIZE', 'distribute the weights anew over files of at most so much, as in 5GB', readSize),
    threads: integer('worker threads; default one a core, at most 4'),
    resume: toggle('keep what an interrupted merge has finished'),
    shards: sized('I/N', 'make only the files of one job out of N, counted from 0', readShare),
    finish: toggle('check the files that all jobs have made, and give the result its name'),
    dryRun: toggle('check everything and show the plan, but write nothing'),
    overwrite: toggle('replace the merge in --out, if a merge wrote it'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ dryRun, json, maxShardSize, shards, adapter: _adapter, weight: _weight, ...rest }, { occurrences }) {
    const adapters = weightedAdapters(occurrences)
    const options = { ...rest, adapters, maxShardBytes: maxShardSize, share: shards }
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

/** An option whose one value has a form of its own. */
function sized<T>(placeholder: string, about: string, read: (occurrence: Occurrence) => T): Option<T | undefined> {
  return { placeholder, about, read: (occurrences) => occurrences.map(read).at(-1) }
}

function readDtype({ flag, value }: Occurrence): 'F32' | 'F16' | 'BF16' {
  const dtype = value.toUpperCase()
  if (dtype === 'F32' || dtype === 'F16' || dtype === 'BF16') return dtype
  throw new UsageError(`${flag} is one of F32, F16, BF16; got '${value}'`)
}

/** 500MB, 5GB or a number of bytes; decimal units, as transformers counts them. */
function readSize({ flag, value }: Occurrence): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)\s*(KB|MB|GB|TB|B)?$/i.exec(value) ?? []
  if (number === undefined) throw new UsageError(`${flag} is a size such as 5GB; got '${value}'`)
  return Math.floor(Number(number) * 1000 ** ['B', 'KB', 'MB', 'GB', 'TB'].indexOf((unit ?? 'B').toUpperCase()))
}

function readShare({ flag, value }: Occurrence): { index: number; count: number } {
  const [, index, count] = /^(\d+)\/(\d+)$/.exec(value) ?? []
  if (index === undefined) throw new UsageError(`${flag} is a job and the number of jobs, such as 0/4; got '${value}'`)
  return { index: Number(index), count: Number(count) }
}

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
