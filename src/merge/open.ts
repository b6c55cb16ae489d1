// Opens what a merge reads, and plans it: nothing is written, and no weight is computed.

import type { ByteSource, Directory } from '../base/bytes.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import type { ChosenFormat } from './format.js'
import type { MergeInput, PartInput, PlanPart } from './parts.js'
import type { OutputFile } from './plan/layout.js'
import type { MergeFormat, MergePlanReport } from './report.js'
import { computeScales } from './weight.js'
import { weighted } from './weighted.js'

export interface OpenMerge extends PlanPart {
  readonly format: MergeFormat
  readonly base: Directory
  readonly sources: readonly ByteSource[]
  readonly baseFiles: ReadonlyMap<ByteSource, number>
  readonly isReproducible: boolean
  outName(folder: string): string
  /** Reads what the computation needs of whole weights: the norms of DoRA layers. */
  prepare(): Promise<void>
  close(): Promise<void>
}

/** Graphs that are open already (`models`) stay open. */
export async function openMerge(
  input: MergeInput,
  chosen: ChosenFormat,
  models?: readonly OnnxModel[],
): Promise<OpenMerge> {
  const { sign = 1, reproducible: isReproducible = false, base } = input
  const closers: (() => Promise<void>)[] = []
  const sources: ByteSource[] = []
  const baseFiles = new Map<ByteSource, number>()
  const close = async () => {
    for (const closeOne of closers.splice(0)) await closeOne()
  }
  try {
    const adapters = [input.adapters].flat().map(weighted)
    const part: PartInput = { ...input, chosen, adapters, sign, sources, baseFiles, closers }
    const plan =
      chosen.format === 'onnx'
        ? await (await import('./onnx/open.js')).openOnnxPart(part, models)
        : await (await import('./open-checkpoint.js')).openCheckpointPart(part)
    const [problem] = plan.fit.problems
    if (problem !== undefined && !input.onlyFits) throw problem
    // A weight file of its own, or a folder of several.
    const [file] = chosen.format === 'safetensors' && plan.files.length === 1 ? plan.files : []
    const graph = chosen.format === 'onnx' && chosen.graphs.length === 1 ? plan.files.at(-1) : undefined
    const named = file ?? graph
    return {
      ...plan,
      format: chosen.format,
      base: base.directory,
      sources,
      baseFiles,
      isReproducible,
      outName: (folder) => (named === undefined ? folder : `${folder}/${named.path}`),
      prepare: () => computeScales(plan.files, sources, plan.magnitudes, isReproducible),
      close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

export function sizeOf(files: readonly { readonly byteLength: number }[]): number {
  return files.reduce((sum, { byteLength }) => sum + byteLength, 0)
}

export function summaryOf({ summary }: OpenMerge, files: readonly OutputFile[]) {
  const names = new Set(files.flatMap(({ tensors }) => tensors))
  return {
    ...summary,
    tensors: files.reduce((sum, { tensors }) => sum + tensors.length, 0),
    changed: files.reduce((sum, { changed }) => sum + changed.length, 0),
    added: summary.added.filter((name) => names.has(name)),
  }
}

export function reportPlan(merge: OpenMerge, out: string): MergePlanReport {
  const { format, files, layers } = merge
  return {
    ...summaryOf(merge, files),
    out,
    format,
    bytes: sizeOf(files),
    files: files.map(({ path: name, byteLength }) => ({ name, byteLength })),
    layers: [...layers],
  }
}
