// The reports of merging.

import type { ChunkChange } from './weight.js'

/** The kind of model that a result is. */
export type MergeFormat = 'onnx' | 'safetensors' | 'gguf'

/** How much merging changed a layer. */
export interface LayerChange {
  name: string
  /**
   * ‖s·B·A‖ / ‖W‖ in Frobenius norms. Infinity if W is zero, and NaN if it cannot be read; JSON writes both as null.
   * Null if the factors were added beside a quantized weight.
   */
  relativeChange: number | null
}

/** The fields of both reports: that of a plan, and that of a finished merge. */
export interface MergeSummary {
  /** The result: its folder, or its file. */
  out: string
  format: MergeFormat
  /** Number of tensors of the result. */
  tensors: number
  /** How many of the result's tensors differ from the base. */
  changed: number
  /** In how many layers with quantized weights the adapters' factors were added beside the weight, or removed. */
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
  /** The bytes of all weight files. */
  bytes: number
  /** The weight files and graphs, by their paths in the result. */
  files: { name: string; byteLength: number }[]
  /** The layers that the adapters change. For safetensors also the adapter modules that change them. */
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

/** The progress of a merge. */
export interface MergeProgress {
  /** Bytes written so far. */
  writtenBytes: number
  /** Bytes of the weights, without headers and small files. */
  totalBytes: number
}

/** Collects Σ w² and Σ δ² of each changed layer. */
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

  /** Returns ‖δ‖ / ‖w‖: 0 if nothing changed, even if the weight is zero; null if the layer was not computed. */
  relativeChange(name: string): number | null {
    const sums = this.byName.get(name)
    if (sums === undefined) return null
    return sums.delta === 0 ? 0 : Math.sqrt(sums.delta / sums.base)
  }
}
