// How an adapter fits a base: what a merge would find for each of its parts, without one that writes or stops at the
// first error.

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
  /** ‖s·B·A‖ / ‖W‖, Frobenius norms, where asked for and defined; else null. */
  relativeChange: number | null
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

/** A part without a place in the base. */
export function missingPart(name: string, problem: string): PartFit {
  return { name, tensor: null, shape: null, dtype: null, problem, relativeChange: null }
}

export function fitReport(report: Omit<FitReport, 'fits'>): FitReport {
  const fits = report.problems.length === 0 && report.parts.every(({ problem }) => problem === null)
  const { base, kind, ...rest } = report
  return { base, kind, fits, ...rest }
}
