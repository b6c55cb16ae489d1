// The input of a merge, a base that is open for it, and the plan for the base.

import type { ByteSource, Place } from '../base/bytes.js'
import type { ResultFile } from './base-files.js'
import type { ChosenFormat } from './choose-format.js'
import type { ChangeSums, LayerChange, MergePlanReport, MergeSummary } from './merge-report.js'
import type { OpenAdapters } from './plan/adapters.js'
import type { Config, ConfigEdit } from './plan/config-edit.js'
import type { FitProblems } from './plan/fit-problems.js'
import type { OutputFile } from './plan/layout.js'
import type { MergeSettings } from './settings.js'
import type { AdapterInput, WeightedAdapter } from './weighted.js'

export interface MergeInput extends MergeSettings {
  base: Place
  adapters: AdapterInput | readonly AdapterInput[]
  /** Name of the weights' file in the result, where it is one. Default: the base's. */
  outFile?: string | undefined
  /** What the names of data files beside it begin with. Default: its name. */
  dataName?: string | undefined
  /** −1 to unmerge. */
  sign?: 1 | -1 | undefined
}

export interface PlanInput extends Omit<MergeInput, 'adapters' | 'sign'> {
  readonly chosen: ChosenFormat
  readonly adapters: readonly Required<WeightedAdapter>[]
  readonly sign: 1 | -1
  /** All that is read at offsets. */
  readonly sources: ByteSource[]
  readonly closers: (() => Promise<void>)[]
}

/** A checkpoint, or graphs, whose files are among the sources. */
export interface OpenBase {
  /** Its name in reports. */
  readonly where: string
  /** Undefined if something does not fit, or only that was to be found out. */
  plan(opened: OpenAdapters, config: Config | undefined, fit: FitProblems): Promise<BasePlan | undefined>
}

export interface BasePlan {
  /** A file that names others comes after them. */
  readonly files: readonly OutputFile[]
  /** The list of a checkpoint's files. */
  readonly index?: ResultFile | undefined
  /** Files and folders (`onnx/`) of the base of which the result has its own version. */
  readonly own: readonly string[]
  readonly edit: ConfigEdit
  /** Rows of the embedding. */
  readonly vocabulary: number | undefined
  readonly warnings: string[]
  readonly summary: Pick<MergeSummary, 'added' | 'branches'>
  readonly layers: MergePlanReport['layers']
  /** To be asked for once all is written. */
  changes(sums: ChangeSums): LayerChange[]
}
