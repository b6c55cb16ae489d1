// The options of merging and unmerging.

import type { Source, Target } from '../core/base/bytes.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { MergeSettings } from '../merge/settings.js'

/** An adapter to merge: an adapter in memory, or a source. `weight` multiplies its change. Default 1. */
export type AdapterToMerge =
  | LoraAdapter
  | Source
  | { readonly adapter: LoraAdapter | Source; readonly weight?: number | undefined }

/** Options of {@link merge}. */
export interface MergeOptions extends MergeSettings {
  /** The model to add the adapter to: a folder, an .onnx file, a safetensors file or its index, or a .gguf file. */
  base: Source
  /** One adapter, or several adapters. Their changes are added. */
  adapters: AdapterToMerge | readonly AdapterToMerge[]
  /**
   * The place of the result. A path that ends in .onnx, .safetensors or .gguf is a file. Other paths are folders, which
   * also get the base's configuration and tokenizer.
   */
  out: Target
}

/** Options of {@link unmerge}. */
export interface UnmergeOptions extends Omit<MergeOptions, 'base' | 'tied' | 'outDtype'> {
  /** The result of a merge. */
  merged: Source
}
