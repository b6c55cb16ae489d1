// Finds whether a base stores a linear layer's weight as (d, k), or as (k, d) like transformers' Conv1D. PEFT asks the
// class of the module; its saved fan_in_fan_out is wrong for GPT-2 if the output layer is adapted too (peft#324).

import type { Checkpoint, CheckpointTensor } from '../../files/checkpoint.js'
import type { TensorInfo } from '../../files/safetensors.js'
import { isConv1d } from '../../model/families/families.js'
import type { LayerFactors } from './adapters.js'
import type { ModelConfig } from './config-edit.js'
import type { CheckpointNames } from './names/choose.js'
import type { Ties } from './names/ties.js'

/** Conv1D modules with more outputs than inputs. */
const WIDENING = /(^|\.)(c_attn|c_fc)\.weight$/

export function isConv1dModule(module: string, tensors: ReadonlyMap<string, CheckpointTensor>): boolean {
  return isConv1d(module) && storesInputMajor(tensors) === true
}

/** True if these Conv1D modules are stored as (k, d), undefined if all of them are square or missing. */
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

export function storedLayer(layer: LayerFactors, module: string, { shape }: TensorInfo, search: WeightSearch) {
  const { d, k, isLinear } = layer
  if (!isLinear || shape.length !== 2 || shape[0] * shape[1] !== d * k || ![d, k].includes(shape[0])) return layer
  const isInputMajor = d === k ? squareIsInputMajor(module, layer, search) : shape[0] === k
  return isInputMajor === layer.isInputMajor ? layer : { ...layer, isInputMajor, shape: isInputMajor ? [k, d] : [d, k] }
}

/** Decides for a square weight: by its name if the model has Conv1D layers, else like the adapter's other layers. */
function squareIsInputMajor(module: string, { isInputMajor }: LayerFactors, search: WeightSearch): boolean {
  const { layers, names, checkpoint } = search
  const stored = storesInputMajor(checkpoint.tensors)
  if (stored !== undefined) return stored && isConv1d(module)
  for (const { name, tensor, d, k, isLinear } of layers) {
    if (!isLinear || tensor !== 'weight' || d === k) continue
    const rows = checkpoint.tensors.get(`${names.locate(name)}.weight`)?.info.shape[0]
    if (rows === d || rows === k) return rows === k
  }
  return isInputMajor
}
