// The input of a merge, a base that is open for it, and the plan for the base.

import type { ByteSource, Place } from '../core/base/bytes.js'
import type { ResultFile } from './base-files.js'
import type { ChosenFormat } from './choose-format.js'
import type { MergePlanReport, MergeSummary } from './merge-report.js'
import type { OpenAdapters } from './plan/adapters.js'
import type { Config, ConfigEdit } from './plan/config-edit.js'
import type { FitProblems } from './plan/fit-problems.js'
import type { OutputFile } from './plan/layout.js'
import type { MergeSettings } from './settings.js'
import type { AdapterInput, WeightedAdapter } from './weighted.js'

export interface MergeInput extends MergeSettings {
  base: Place
  adapters: AdapterInput | readonly AdapterInput[]
  /** The name of the weight file, if the result has only one. Default: the name in the base. */
  outFile?: string | undefined
  /** The start of the names of its data files. Default: its own name. */
  dataName?: string | undefined
  /** −1: unmerge. */
  sign?: 1 | -1 | undefined
}

export interface PlanInput extends Omit<MergeInput, 'adapters' | 'sign'> {
  readonly chosen: ChosenFormat
  readonly adapters: readonly Required<WeightedAdapter>[]
  readonly sign: 1 | -1
  /** All files and buffers that are read at offsets. */
  readonly sources: ByteSource[]
  readonly closers: (() => Promise<void>)[]
}

/** An open base: a checkpoint or graphs. Its files are among the sources. */
export interface OpenBase {
  /** The name of the base in reports. */
  readonly where: string
  /** Plans the merge. Returns undefined if something does not fit, or if only the fit was asked for. */
  plan(opened: OpenAdapters, config: Config | undefined, fit: FitProblems): Promise<BasePlan | undefined>
}

export interface BasePlan {
  /** The weight files. A file that names other files comes after them. */
  readonly files: readonly OutputFile[]
  /** The index of a checkpoint's files. */
  readonly index?: ResultFile | undefined
  /** Files and folders (`onnx/`) of the base for which the result has another version. */
  readonly replaced: readonly string[]
  readonly edit: ConfigEdit
  /** The number of rows of the embedding. */
  readonly vocabulary: number | undefined
  readonly warnings: string[]
  readonly summary: Pick<MergeSummary, 'added' | 'branches'>
  readonly layers: MergePlanReport['layers']
}
