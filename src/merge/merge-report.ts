// The reports of merging.

import type { ChunkChange } from './weight.js'

/** The kind of model that a result is. */
export type MergeFormat = 'onnx' | 'safetensors'

/** How much merging changed a layer. */
export interface LayerChange {
  name: string
  /**
   * ‖s·B·A‖ / ‖W‖, Frobenius norms; Infinity where W is zero and NaN where it cannot be read, which JSON writes as
   * null. Null for factors beside quantized weights.
   */
  relativeChange: number | null
}

/** Part of a plan and of a finished merge. */
export interface MergeSummary {
  /** The result: its folder, or its file. */
  out: string
  format: MergeFormat
  /** Number of tensors of the result. */
  tensors: number
  /** How many of them hold other values than the base's. */
  changed: number
  /** How many layers with quantized weights got the adapters' factors beside them, or lost them. */
  branches?: number
  /** Tensors of a head that the base does not have. */
  added: string[]
  /** Other files of the base that are copied. */
  copied: string[]
  /** Files and folders of the base that are not copied. Folders end in `/`. */
  leftOut: string[]
  /** Things that you must do before you can use the result. */
  warnings: string[]
}

/** Plan of a merge. */
export interface MergePlanReport extends MergeSummary {
  /** Bytes of all files of weights. */
  bytes: number
  /** Files of weights, and graphs, by their names inside the result. */
  files: { name: string; byteLength: number }[]
  /** The layers that the adapters change. In safetensors also the modules that change them. */
  layers: { name: string; adapters?: { module: string; rank: number; scale: number }[] }[]
}

/** Result of a merge. */
export interface MergeReport extends MergeSummary {
  /** Bytes of all files of the result. */
  bytes: number
  /** Duration in seconds. */
  seconds: number
  /** The changed layers, with ‖ΔW‖ / ‖W‖. Replaced values are not listed. */
  layers: LayerChange[]
}

/** How far a merge is. */
export interface MergeProgress {
  /** Bytes written so far. */
  writtenBytes: number
  /** Bytes of the weights, without headers and small files. */
  totalBytes: number
}

/** Σ w² and Σ δ² of each changed layer. */
export class ChangeSums {
  readonly byName = new Map<string, { base: number; delta: number }>()

  add({ weight, baseSquares, deltaSquares }: ChunkChange): void {
    for (const name of weight.reports) this.#add(name, baseSquares, deltaSquares)
  }

  addAll(sums: ChangeSums['byName']): void {
    for (const [name, { base, delta }] of sums) this.#add(name, base, delta)
  }

  #add(name: string, baseSquares: number, deltaSquares: number): void {
    const { base, delta } = this.byName.get(name) ?? { base: 0, delta: 0 }
    this.byName.set(name, { base: base + baseSquares, delta: delta + deltaSquares })
  }

  /** A change of nothing is 0, for a weight of zeros too. Null for what was not computed. */
  relativeChange(name: string): number | null {
    const sums = this.byName.get(name)
    if (sums === undefined) return null
    return sums.delta === 0 ? 0 : Math.sqrt(sums.delta / sums.base)
  }
}
