// Which way round a base stores a linear layer's weight: (d, k), or (k, d) as transformers' Conv1D does. PEFT asks the module's class
// and not fan_in_fan_out, which it sets for each module anew and saves as the last one left it: false for GPT-2's Conv1D layers when
// its output layer is adapted too (peft#324). A checkpoint has no classes; it has shapes, and names that only Conv1D models use.

import { MismatchError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import type { CheckpointTensor } from '../../formats/checkpoint.js'
import type { TensorInfo } from '../../formats/safetensors.js'
import type { LayerFactors } from './adapters.js'

/** GPT-2 and what is built like it. */
const CONV1D_NAMES = /(^|\.)(c_attn|c_proj|c_fc|q_attn)$/
/** Of these, the ones with more outputs than inputs. */
const WIDENING = /(^|\.)(c_attn|c_fc)\.weight$/

/**
 * The layer as its tensor has it. Where d = k a shape says nothing: then the model's other layers of that kind, then the adapter's
 * config, unless that is wrong about another layer.
 *
 * @param module the layer's name in the checkpoint
 * @param layers all of the merge
 * @param locate module name → the checkpoint's
 * @throws MismatchError when nothing tells how a square weight is stored
 */
export function storedLayer(
  layer: LayerFactors,
  module: string,
  { shape }: TensorInfo,
  tensors: ReadonlyMap<string, CheckpointTensor>,
  layers: readonly LayerFactors[],
  locate: (name: string) => string,
): LayerFactors {
  const { d, k, isLinear } = layer
  if (!isLinear || shape.length !== 2 || shape[0] * shape[1] !== d * k || ![d, k].includes(shape[0])) return layer
  const shapeOf = (other: LayerFactors) => tensors.get(`${locate(other.name)}.${other.tensor}`)?.info.shape
  const isInputMajor = d === k ? squareIsInputMajor(module, layer, tensors, layers, shapeOf) : shape[0] === k
  return isInputMajor === layer.isInputMajor ? layer : { ...layer, isInputMajor, shape: isInputMajor ? [k, d] : [d, k] }
}

function squareIsInputMajor(
  module: string,
  { isInputMajor, d, k }: LayerFactors,
  tensors: ReadonlyMap<string, CheckpointTensor>,
  layers: readonly LayerFactors[],
  shapeOf: (layer: LayerFactors) => readonly number[] | undefined,
): boolean {
  if (!CONV1D_NAMES.test(module)) {
    const other = layers.find((layer) => {
      const shape = layer.isLinear && layer.tensor === 'weight' && layer.d !== layer.k ? shapeOf(layer) : undefined
      const turned = layer.isInputMajor ? [layer.d, layer.k] : [layer.k, layer.d]
      return shape?.length === 2 && shape[0] === turned[0] && shape[1] === turned[1]
    })
    if (other === undefined) return isInputMajor
    throw new MismatchError({
      where: module,
      what: `nothing tells whether this square weight ${formatShape([d, k])} is stored as (d, k) or (k, d): the adapter's fan_in_fan_out is wrong about ${other.name}`,
      hint: 'Merge this adapter with PEFT, which asks the model itself',
    })
  }
  for (const [name, { info }] of tensors) {
    const [rows, columns] = info.shape
    if (info.shape.length === 2 && rows !== columns && WIDENING.test(name)) return rows < columns
  }
  return isInputMajor
}
