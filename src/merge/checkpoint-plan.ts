// Plans a merge into a safetensors checkpoint: pure, from the tensors' names, types and shapes. Strict: every layer of the
// adapter finds its weight, in the right shape, before anything is written.

import { MismatchError, nearMisses, UnsupportedError } from '../base/errors.js'
import { formatShape } from '../base/tensor.js'
import { isFloatDtype, type TensorInfo } from '../formats/safetensors.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { LoraLayer } from '../lora/layer.js'
import type { MergeTarget } from './weight.js'

export interface PlannedTensor {
  readonly info: TensorInfo
  /** What is merged into it; undefined: its bytes are copied. */
  readonly target: MergeTarget | undefined
}

export interface MergePlan {
  /** In the order of their bytes. */
  readonly tensors: readonly PlannedTensor[]
  /** How many of them change. */
  readonly changed: number
}

export interface PlanOptions {
  /** config.json says that input and output embeddings are one weight. */
  isTied?: boolean
}

/** Modules that are one weight in tied models, by the last part of their names. */
const HEADS = /(^|\.)(lm_head|embed_out)$/
const EMBEDDINGS = /(^|\.)(embed_tokens|embed_in|wte|word_embeddings)$/

/**
 * @throws MismatchError naming each layer without a tensor `<layer>.weight`, or the first of another shape, or an
 *   embedding that is tied; UnsupportedError when a weight's type is not F32, F16 or BF16
 */
export function planMerge(
  tensors: Iterable<TensorInfo>,
  adapter: LoraAdapter,
  { isTied = false }: PlanOptions = {},
): MergePlan {
  if (adapter.size === 0) throw new MismatchError({ where: 'adapter', what: 'it has no layers' })
  const byName = new Map([...tensors].map((info) => [info.name, info]))
  const targets = new Map<string, MergeTarget>()
  const missing: string[] = []
  for (const [name, layer] of adapter) {
    const info = byName.get(`${name}.weight`)
    const isEmbedding = HEADS.test(name) || EMBEDDINGS.test(name)
    const isHeadElsewhere = HEADS.test(name) && info === undefined && hasEmbedding(byName, layer)
    if ((isTied && isEmbedding) || isHeadElsewhere) throw tiedError(name, info !== undefined)
    if (info === undefined) missing.push(name)
    else targets.set(info.name, mergeTarget(name, layer, info))
  }
  if (missing.length > 0) throw missingError(missing, byName)
  const inFileOrder = [...byName.values()].sort((a, b) => a.offset - b.offset)
  return {
    tensors: inFileOrder.map((info) => ({ info, target: targets.get(info.name) })),
    changed: targets.size,
  }
}

function mergeTarget(name: string, layer: LoraLayer, info: TensorInfo): MergeTarget {
  const { dtype, shape } = info
  if (!isFloatDtype(dtype)) {
    throw new UnsupportedError({
      where: info.name,
      what: 'a weight of this type cannot be merged into',
      expected: 'F32, F16 or BF16',
      got: dtype,
      hint: 'Merge into the unquantised checkpoint',
    })
  }
  const { d, k, config } = layer
  const isInputMajor = config.fanInFanOut
  const [rows, columns] = isInputMajor ? [k, d] : [d, k]
  if (shape.length !== 2 || shape[0] !== rows || shape[1] !== columns) {
    const isVocabulary = HEADS.test(name) || EMBEDDINGS.test(name)
    throw new MismatchError({
      where: info.name,
      what: 'the adapter was made for another shape of this weight',
      expected: formatShape([rows, columns]),
      got: formatShape(shape),
      ...(isVocabulary && { hint: 'Its base had another vocabulary: resize the embeddings of this base first' }),
    })
  }
  return { name: info.name, dtype, shape: [rows, columns], isInputMajor, parts: [{ name, layer, start: 0 }] }
}

/** Whether an input embedding is there that the layer, an output embedding, would fit. */
function hasEmbedding(tensors: ReadonlyMap<string, TensorInfo>, { d, k }: LoraLayer): boolean {
  return [...tensors.values()].some(
    ({ name, shape }) => EMBEDDINGS.test(name.replace(/\.weight$/, '')) && shape[0] === d && shape[1] === k,
  )
}

function tiedError(name: string, isStored: boolean): MismatchError {
  return new MismatchError({
    where: name,
    what: isStored
      ? 'config.json ties input and output embeddings, so that loaders would use one weight for both'
      : `the base stores no ${name}.weight: input and output embeddings are one weight`,
    expected: 'an adapter without a layer for a tied embedding',
    hint:
      'Merging would change the other embedding too, or be dropped. ' +
      'Untie them in the base (tie_word_embeddings false, both weights stored), or use the adapter at run time',
  })
}

function missingError(missing: readonly string[], tensors: ReadonlyMap<string, TensorInfo>): MismatchError {
  const modules = [...tensors.keys()].flatMap((name) => (name.endsWith('.weight') ? name.slice(0, -7) : []))
  const near = nearMisses(missing[0], modules)
  const shown = missing.slice(0, 5).join(', ') + (missing.length > 5 ? `, … (${missing.length} in all)` : '')
  return new MismatchError({
    where: 'adapter',
    what: `the base has no weight for ${shown}`,
    expected: `a tensor ${missing[0]}.weight`,
    ...(near.length > 0 && { hint: `Nearest to the first: ${near.join(', ')}` }),
  })
}
