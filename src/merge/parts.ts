// The input of a merge, and its plan, a checkpoint's or an .onnx's.

import type { ByteSource, Place } from '../base/bytes.js'
import type { OtherFile } from './companions.js'
import type { ChosenFormat } from './format.js'
import { type LayerMagnitude, type OpenAdapters, openAdapters } from './plan/adapters.js'
import type { Fit } from './plan/fit.js'
import type { OutputFile } from './plan/layout.js'
import type { ChangeSums, LayerChange, MergePlanReport, MergeSummary } from './report.js'
import type { MergeSettings } from './settings.js'
import type { AdapterInput, WeightedAdapter } from './weighted.js'

export interface MergeInput extends MergeSettings {
  base: Place
  adapters: AdapterInput | readonly AdapterInput[]
  /** Name of the weights' file in the result, where it is one. Default: the base's. */
  outFile?: string | undefined
  /** −1 to unmerge. */
  sign?: 1 | -1 | undefined
  /** Finds out how the adapters fit, and plans no file. */
  onlyFits?: boolean | undefined
}

export interface PartInput extends Omit<MergeInput, 'adapters' | 'sign'> {
  readonly chosen: ChosenFormat
  readonly adapters: readonly Required<WeightedAdapter>[]
  readonly sign: 1 | -1
  /** All that is read at offsets. A part adds its own, as to the next two. */
  readonly sources: ByteSource[]
  /** The base's files among the sources, and how many bytes of each are its header. */
  readonly baseFiles: Map<ByteSource, number>
  readonly closers: (() => Promise<void>)[]
}

export interface PlanPart {
  /** A file that names others comes after them. */
  readonly files: readonly OutputFile[]
  readonly others: readonly OtherFile[]
  readonly magnitudes: readonly LayerMagnitude[]
  readonly summary: Omit<MergeSummary, 'out' | 'format' | 'tensors' | 'changed'>
  readonly layers: MergePlanReport['layers']
  readonly tensors: ReadonlyMap<string, readonly number[]>
  /** To be asked for once all is written. */
  changes(sums: ChangeSums): Promise<LayerChange[]>
  readonly fit: Fit
}

export async function openPartAdapters(input: PartInput): Promise<OpenAdapters> {
  const { adapters, sign, strict, onlyFits, sources, closers } = input
  const opened = await openAdapters(adapters, sign, { strict, isTolerant: onlyFits }, sources)
  closers.push(() => opened.close())
  return opened
}

/** A part that plans no file, because something does not fit, or that was all to be found out. */
export function unfinishedPart(fit: Fit): PlanPart {
  const nothing = { files: [], others: [], magnitudes: [], layers: [], tensors: new Map() }
  const summary = { added: [], renamed: [], copied: [], leftOut: [], warnings: [] }
  return { ...nothing, summary, changes: async () => [], fit }
}
