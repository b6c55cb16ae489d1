// The options of merging. Options that a format cannot honor are refused by name before anything is written.

import type { FloatDtype } from '../core/base/dtype.js'
import { ConfigError, UnsupportedError } from '../core/base/errors.js'
import type { SignalLike } from '../core/base/globals.js'
import type { DtypeChoice } from '../model/graph-file.js'
import type { ModuleMap } from '../model/match/linears.js'
import type { MergeFormat, MergeProgress } from './merge-report.js'
import type { TiedPolicy } from './plan/tied.js'

/** Callbacks of a merge. If one throws an error, the merge stops, and nothing is left. */
export interface MergeEvents {
  /** Called after each piece that is written, or several times a second. */
  progress?(progress: MergeProgress): void
}

/** Settings of all merges, with the defaults that their docstrings name. */
export interface MergeSettings {
  /** Stops the merge. The promise rejects with the signal's reason, and nothing is left. */
  signal?: SignalLike | undefined
  /** Callbacks. Default in Node: a bar on a terminal if the merge takes over 2 s, else none. `{}` is silent. */
  on?: MergeEvents | undefined
  /**
   * Format of the result. Default: the format of the base file. If the base is a folder: `onnx` if it has an .onnx
   * model, else `safetensors`. A GGUF file is made only from a GGUF file.
   */
  format?: MergeFormat | undefined
  /**
   * Where a folder has its .onnx files. `transformers.js`: in `onnx/`. `optimum`: beside config.json. Default: as in
   * the base. Only for .onnx.
   */
  layout?: 'transformers.js' | 'optimum' | undefined
  /**
   * Which .onnx file of the base is read, by the type of its weights. Default: the type in config.json, or `fp32` if
   * it has none.
   * @flag TYPE
   */
  dtype?: DtypeChoice | undefined
  /**
   * What happens if the adapter changes only one of two tied embeddings. `untie`: the result has two weights, as in
   * training. `keep`: it has one weight, which changes for both uses. Default `untie`; an .onnx is always untied.
   */
  tied?: TiedPolicy | undefined
  /**
   * Leaves out layers that an .onnx export dropped, and continues if a head needs tensors that neither the base nor the
   * adapters have: loaders fill them with random numbers. Default false.
   */
  allowMissing?: boolean | undefined
  /**
   * Type of the weights that are written; all fp64, fp32, fp16 and bf16 tensors are converted. Default `keep`. Not for
   * .onnx. In a .gguf only the tensors that change are converted. By default they keep their type too, except K types
   * and iq4_nl, which become q8_0; `keep` refuses these. Only a .gguf can have q8_0 and q4_0.
   */
  outDtype?: FloatDtype | 'q8_0' | 'q4_0' | 'keep' | undefined
  /**
   * Largest size of a weight file in bytes. Default: the same files as the base. Not for .onnx.
   * @range an integer of at least 1
   */
  maxShardBytes?: number | undefined
  /**
   * Writes only the weights, without the base's configuration and tokenizer. Default false. If `out` is a file, only
   * weights are written anyway.
   */
  weightsOnly?: boolean | undefined
  /** Module name → name of its node or its weight, if the names in the .onnx file do not tell. */
  modules?: ModuleMap | undefined
  /**
   * Replaces an output that a merge wrote. Default false.
   *
   * Only if `out` is a path.
   */
  overwrite?: boolean | undefined
  /**
   * Number of threads, including the calling thread. Default: one for each core, at most 4.
   *
   * Only if `out` is a path.
   * @range an integer in [1, 1024]
   */
  threads?: number | undefined
}

/** Options that some formats do not have. They accept such an option if its value is `allowed`. */
const ONLY: readonly (readonly [keyof MergeSettings, readonly MergeFormat[], what: string, allowed?: string])[] = [
  ['layout', ['onnx'], 'it says where a folder has its .onnx files'],
  ['modules', ['onnx'], 'it names nodes of an .onnx file'],
  ['dtype', ['onnx'], 'it chooses an .onnx file; the type that is written is `outDtype`'],
  ['tied', ['safetensors', 'gguf'], 'in an .onnx file tied embeddings are always untied', 'untie'],
  ['outDtype', ['safetensors', 'gguf'], 'the types of an .onnx file stay as they are', 'keep'],
  ['maxShardBytes', ['safetensors'], 'only a checkpoint can be cut into files'],
]

export function refuseForFormat(settings: MergeSettings, format: MergeFormat): void {
  const got = `a result in the format '${format}'`
  for (const [where, formats, what, allowed] of ONLY) {
    if (formats.includes(format) || settings[where] === undefined || settings[where] === allowed) continue
    const into = formats[0] === 'onnx' ? 'the .onnx' : 'safetensors'
    const hint = `Leave it out, or merge into ${into}: \`format: '${formats[0]}'\``
    throw new UnsupportedError({ where, what, got, hint })
  }
  const { outDtype } = settings
  if (format === 'gguf' || (outDtype !== 'q8_0' && outDtype !== 'q4_0')) return
  throw new UnsupportedError({ where: 'outDtype', what: `only a .gguf file can have ${outDtype}`, got })
}

export function refuseWithoutPath(settings: MergeSettings): void {
  for (const name of ['overwrite', 'threads'] as const) {
    if (settings[name] === undefined || settings[name] === false) continue
    throw new ConfigError({
      where: name,
      what: 'only for outputs that are named by a path',
      got: String(settings[name]),
      hint: 'Leave it out, or name a path',
    })
  }
}
