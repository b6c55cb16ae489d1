// The input of a merge, and the parts that its plan is made of: a checkpoint's, an .onnx's, or both.

import type { ByteSource } from '../base/bytes.js'
import type { OtherFile } from './companions.js'
import type { ChosenFormat, MergeBase } from './format.js'
import type { LayerMagnitude } from './plan/adapters.js'
import type { OutputFile } from './plan/layout.js'
import type { ChangeSums, LayerChange, MergePlanReport, MergeSummary } from './report.js'
import type { MergeSettings } from './settings.js'
import type { AdapterInput, WeightedAdapter } from './weighted.js'

/** A base, and the adapters that are merged into it. */
export interface MergeInput extends MergeSettings {
  base: MergeBase
  /** One, or several that are added up. */
  adapters: AdapterInput | readonly AdapterInput[]
  /** Name of the weights' file in the result, where it is one. Default: the base's. */
  outFile?: string | undefined
  /** −1 to unmerge. Default 1. */
  sign?: 1 | -1 | undefined
}

/** The input of each part of a plan, a checkpoint's and an .onnx's. */
export interface PartInput extends Omit<MergeInput, 'adapters' | 'sign'> {
  readonly chosen: ChosenFormat
  readonly adapters: readonly Required<WeightedAdapter>[]
  readonly sign: 1 | -1
  /** All that is read at offsets. A part adds its own. */
  readonly sources: ByteSource[]
  /** The base's files among the sources, and how many bytes of each are its header. A part adds its own. */
  readonly baseFiles: Map<ByteSource, number>
  /** Close what was opened. A part adds its own. */
  readonly closers: (() => Promise<void>)[]
}

/** The plan of a checkpoint or of an .onnx. */
export interface PlanPart {
  /** In the order in which they are written: a file that names others comes after them. */
  readonly files: readonly OutputFile[]
  readonly others: readonly OtherFile[]
  readonly magnitudes: readonly LayerMagnitude[]
  readonly summary: Omit<MergeSummary, 'out' | 'format' | 'tensors' | 'changed'>
  readonly layers: MergePlanReport['layers']
  /** Names and shapes of a checkpoint's tensors. */
  readonly tensors: ReadonlyMap<string, readonly number[]>
  /** The changes of the layers, once all is written. */
  changes(sums: ChangeSums): Promise<LayerChange[]>
}
