// How an adapter fits a base: a merge throws the plan's first problem, a look at the fit lists all.

import type { Directory, Place } from '../base/bytes.js'
import type { ChosenFormat } from './choose-format.js'
import { openPlan } from './open.js'

/** One layer, or a tensor that replaces the base's, and its place in the base. */
export interface PartFit {
  /** In the adapter. */
  name: string
  /** The base's tensor; null when there is none. */
  tensor: string | null
  /** As it is stored; null when there is none. */
  shape: readonly number[] | null
  dtype: string | null
  /** Why it cannot be merged; null when it fits. */
  problem: string | null
}

/** How an adapter fits a base, part by part. */
export interface FitReport {
  /** The file or folder. */
  base: string
  kind: 'checkpoint' | 'onnx'
  /** True if the adapter can be merged into the base. */
  fits: boolean
  parts: PartFit[]
  /** Rows of the input embedding; null where none can be told by its name. */
  vocabulary: number | null
  /** True if input and output embedding are one weight; null where that cannot be told. */
  isTied: boolean | null
  /** Problems of the whole: a quantized base, parts that exclude each other. */
  problems: string[]
  /** Options that a merge needs, and other hints. */
  notes: string[]
}

/** Plans the merge without weights. */
export async function fitOf(base: Place, adapter: Directory, graphs: readonly string[] = []): Promise<FitReport> {
  const isOnnx = graphs.length > 0
  const format = isOnnx ? 'onnx' : 'safetensors'
  const chosen: ChosenFormat = { format, graphs, checkpoint: isOnnx ? undefined : base.file }
  const { fit, where, close } = await openPlan({ base, adapters: adapter }, chosen, { onlyFits: true })
  await close()
  const { vocabulary, isTied, whole, notes, problems } = fit
  const parts = fit.parts.map(({ name, info, problem }): PartFit => {
    const { name: tensor, shape, dtype } = info ?? { name: null, shape: null, dtype: null }
    return { name, tensor, shape, dtype, problem: problem?.message ?? null }
  })
  return {
    base: where,
    kind: isOnnx ? 'onnx' : 'checkpoint',
    fits: problems.length === 0,
    parts,
    vocabulary,
    isTied,
    problems: whole.map(({ message }) => message),
    notes,
  }
}
