// Estimates how much memory a model needs before it is opened, to within some tens of percent.

import { tensorsOf } from '../onnx/format/messages.js'
import type { OnnxModel } from '../onnx/format/model.js'
import { isExternal, weightRange } from '../onnx/format/tensors.js'
import type { Model } from './model-folder.js'

/** WebAssembly addresses 4 GB, for weights, caches and results together. */
export const WASM_BYTES = 2 ** 32

export interface MemoryNeed {
  /** Bytes of the weights in the file: always needed, unless the file is mapped. */
  readonly weights: number
  readonly total: number
}

/** Counts the bytes of all weights. Shared weights count once. */
export function weightBytes(onnx: OnnxModel): number {
  const ranges = new Map<string, number>()
  let inline = 0
  for (const tensor of tensorsOf(onnx.proto)) {
    if (isExternal(tensor)) {
      const { location, offset, byteLength } = weightRange(tensor, onnx.name)
      ranges.set(`${location}:${offset}`, byteLength)
    } else inline += tensor.rawData.byteLength
  }
  return [...ranges.values()].reduce((sum, bytes) => sum + bytes, inline)
}

/** ONNX Runtime repacks weights, which makes a second copy, unless `lowMemory`. */
export function sessionMemory(onnx: OnnxModel, lowMemory: boolean): MemoryNeed {
  const weights = weightBytes(onnx)
  return { weights, total: lowMemory ? weights : 2 * weights }
}

/** From here on, copies of all weights would take most of a training's memory, so that only some are copied. */
const LARGE_WEIGHTS = 2 ** 28
const SOME_COPIES = 225e6

/** Returns the default limit for copies of weights in a training. The first argument is the need with all copies. */
export function chooseCopies({ weights, total }: MemoryNeed, limits: readonly MemoryLimit[]): number {
  const isLarge = weights >= LARGE_WEIGHTS
  const need = isLarge ? total - weights + SOME_COPIES : total
  if (limits.some(({ bytes }) => bytes < need)) return 0
  return isLarge ? SOME_COPIES : Number.POSITIVE_INFINITY
}

/** Logits of up to `whole` bytes in a usual run are computed whole, others in blocks of at most `block` bytes. */
export const LOGIT_BYTES = { whole: 2 ** 26, block: 2 ** 26 }
const USUAL_ROWS = 256

export function hasLogitBlocks(vocabulary: number, whole = LOGIT_BYTES.whole): boolean {
  return 4 * USUAL_ROWS * vocabulary > whole
}

/** Up to `whole` tokens, attention is computed at once. For longer texts, `rows` queries are computed at a time. */
const ATTENTION = { whole: 1024, rows: 128 }

/**
 * Chooses from which size a training graph computes attention and logits in blocks, for texts of up to `tokens` tokens.
 */
export function blocksFor(tokens: number) {
  const isOptimized = tokens > 0
  if (tokens <= ATTENTION.whole) return { isOptimized }
  return {
    isOptimized,
    attentionRows: ATTENTION.rows,
    logitBytes: { ...LOGIT_BYTES, whole: (LOGIT_BYTES.whole * USUAL_ROWS) / tokens },
  }
}

/** f32 values that training keeps per token, measured on decoders with LoRA on all linear layers. */
const KEPT = { hidden: 6, intermediate: 3, intermediateOfLong: 1, logits: 2 }

/** `batch` rows of `sequence` tokens each. */
export function trainingMemory(
  { onnx, config, vocabularySize = 0 }: Pick<Model, 'onnx' | 'config' | 'vocabularySize'>,
  { batch, sequence, lowMemory }: { batch: number; sequence: number; lowMemory: boolean },
): MemoryNeed {
  const session = sessionMemory(onnx, lowMemory)
  const text = (config.text_config ?? config) as Readonly<Record<string, unknown>>
  const number = (...keys: string[]) => {
    return keys.map((key) => text[key]).find((value): value is number => typeof value === 'number') ?? 0
  }
  const hidden = number('hidden_size', 'n_embd', 'd_model', 'dim')
  const layers = number('num_hidden_layers', 'n_layer', 'num_layers', 'n_layers')
  const intermediate = number('intermediate_size', 'n_inner', 'ffn_dim', 'd_ff', 'hidden_dim') || 4 * hidden
  const ofMlp = sequence > ATTENTION.whole ? KEPT.intermediateOfLong : KEPT.intermediate
  const perLayer = KEPT.hidden * hidden + ofMlp * intermediate
  const most = hasLogitBlocks(vocabularySize) ? LOGIT_BYTES.block : Number.POSITIVE_INFINITY
  const logits = KEPT.logits * Math.min(4 * batch * sequence * vocabularySize, most)
  return { ...session, total: session.total + batch * sequence * 4 * layers * perLayer + logits }
}

export interface MemoryLimit {
  readonly bytes: number
  /** In words with a verb, such as `this machine has free`. */
  readonly of: string
}

/** Returns a warning if there is not enough memory. `help` lists what would need less memory, best first. */
export function memoryWarning(
  need: MemoryNeed,
  limits: readonly MemoryLimit[],
  { what, help }: { what: string; help: readonly string[] },
): string | undefined {
  const limit = limits.toSorted((a, b) => a.bytes - b.bytes).find(({ bytes }) => bytes < need.total)
  if (limit === undefined) return undefined
  const advice = help.length === 0 ? '' : `. What helps: ${help.join(', or ')}`
  return `${what} needs about ${gigabytes(need.total)} of memory, and ${limit.of} ${gigabytes(limit.bytes)}${advice}`
}

export function gigabytes(bytes: number): string {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.ceil(bytes / 1e6)} MB`
}
