// Reports how an adapter fits a base. A merge throws the first problem of its plan; this report lists all of them.

import type { Directory, Place } from '../core/base/bytes.js'
import type { ChosenFormat } from './choose-format.js'
import { openPlan } from './open.js'

/** A layer, or a tensor that replaces one of the base, and its place in the base. */
export interface PartFit {
  /** The name in the adapter. */
  name: string
  /** The tensor in the base, or null if the base has no such tensor. */
  tensor: string | null
  /** The stored shape of the tensor, or null if the base has no such tensor. */
  shape: readonly number[] | null
  dtype: string | null
  /** Why it cannot be merged, or null if it fits. */
  problem: string | null
}

/** How an adapter fits a base, part by part. */
export interface FitReport {
  /** The file or folder of the base. */
  base: string
  kind: 'checkpoint' | 'onnx'
  /** True if the adapter can be merged into the base. */
  fits: boolean
  parts: PartFit[]
  /** The number of rows of the input embedding, or null if it is not found by its name. */
  vocabulary: number | null
  /** True if input and output embedding share a weight, null if that is not known. */
  isTied: boolean | null
  /** Problems that concern no single part: a quantized base, or parts that exclude each other. */
  problems: string[]
  /** Options that a merge needs, and other hints. */
  notes: string[]
}

/** Plans the merge without reading weights, and reports the fit. */
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
