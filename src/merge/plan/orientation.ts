// Which way round a base stores a linear layer's weight: (d, k), or (k, d) as transformers' Conv1D does. PEFT asks the
// module's class; its saved fan_in_fan_out is wrong for GPT-2 when the output layer is adapted too (peft#324).

import { MismatchError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import type { Checkpoint, CheckpointTensor } from '../../formats/checkpoint.js'
import type { TensorInfo } from '../../formats/safetensors.js'
import type { LayerFactors } from './adapters.js'
import type { ModelConfig } from './config-edit.js'
import type { CheckpointNames } from './names/choose.js'
import type { Ties } from './names/ties.js'

const CONV1D_NAMES = /(^|\.)(c_attn|c_proj|c_fc|q_attn)$/
/** The ones of them that have more outputs than inputs. */
const WIDENING = /(^|\.)(c_attn|c_fc)\.weight$/

export function isConv1dModule(module: string, tensors: ReadonlyMap<string, CheckpointTensor>): boolean {
  return CONV1D_NAMES.test(module) && storesInputMajor(tensors) === true
}

/** Undefined where no such layer is other than square. */
function storesInputMajor(tensors: ReadonlyMap<string, CheckpointTensor>): boolean | undefined {
  for (const [name, { info }] of tensors) {
    const [rows, columns] = info.shape
    if (info.shape.length === 2 && WIDENING.test(name) && rows !== columns) return rows < columns
  }
  return undefined
}

export interface WeightSearch {
  readonly layers: readonly LayerFactors[]
  readonly names: CheckpointNames
  readonly checkpoint: Checkpoint
  readonly ties: Ties
  readonly config: ModelConfig | undefined
}

/**
 * A square shape says nothing: then the model's other layers of that kind, then the adapter's config, unless that is
 * wrong about another layer.
 */
export function storedLayer(
  layer: LayerFactors,
  module: string,
  { shape }: TensorInfo,
  search: WeightSearch,
): LayerFactors {
  const { d, k, isLinear } = layer
  if (!isLinear || shape.length !== 2 || shape[0] * shape[1] !== d * k || ![d, k].includes(shape[0])) return layer
  const isInputMajor = d === k ? squareIsInputMajor(module, layer, search) : shape[0] === k
  return isInputMajor === layer.isInputMajor ? layer : { ...layer, isInputMajor, shape: isInputMajor ? [k, d] : [d, k] }
}

function squareIsInputMajor(module: string, { isInputMajor, d, k }: LayerFactors, search: WeightSearch): boolean {
  if (!CONV1D_NAMES.test(module)) {
    const other = misjudgedLayer(search)
    if (other === undefined) return isInputMajor
    throw new MismatchError({
      where: module,
      what: `it is not known whether this square weight ${formatShape([d, k])} is stored as (d, k) or (k, d): the adapter's fan_in_fan_out is wrong about ${other.name}`,
      hint: 'Merge this adapter with PEFT, which asks the model itself',
    })
  }
  return storesInputMajor(search.checkpoint.tensors) ?? isInputMajor
}

/** A search through all layers for each square one would be quadratic. */
const misjudged = new WeakMap<WeightSearch, LayerFactors | undefined>()

/** A layer that is not square and about which the adapter's config is wrong. */
function misjudgedLayer(search: WeightSearch): LayerFactors | undefined {
  if (!misjudged.has(search)) {
    const { layers, names, checkpoint } = search
    const found = layers.find(({ name, tensor, d, k, isLinear, isInputMajor }) => {
      if (!isLinear || tensor !== 'weight' || d === k) return false
      const shape = checkpoint.tensors.get(`${names.locate(name)}.weight`)?.info.shape
      const [rows, columns] = isInputMajor ? [d, k] : [k, d]
      return shape?.length === 2 && shape[0] === rows && shape[1] === columns
    })
    misjudged.set(search, found)
  }
  return misjudged.get(search)
}
