// Adapted parameters of experts in a checkpoint, which stores them as one tensor (E, ·, ·) or a matrix for each expert.

import { sizeOf } from '../../core/base/dtype.js'
import { MismatchError } from '../../core/base/errors.js'
import { formatShape } from '../../core/base/tensor.js'
import type { TensorInfo } from '../../files/safetensors.js'
import { parameterLayout } from '../../lora/kinds/experts.js'
import { expertForm } from '../../model/families/families.js'
import type { Factor, LayerFactors } from './adapters.js'
import type { WeightSearch } from './orientation.js'

export function expertLayer(layer: LayerFactors, expert: number, firstRow = 0, rows = layer.d): LayerFactors {
  const { a, b, k, rank, isInputMajor, experts = 1 } = layer
  const factorBytes = rank * k * sizeOf(a.dtype)
  return {
    ...layer,
    d: rows,
    experts: undefined,
    shape: isInputMajor ? [k, rows] : [rows, k],
    a: { ...a, offset: a.offset + expert * factorBytes, rows: rank },
    b: { ...b, slice: { firstRow, first: expert, step: experts } },
  }
}

/** Returns the part of a layer that changes some rows of its weight, or some values of a bias. */
export function layerOfRows(layer: LayerFactors, first: number, rows: number): LayerFactors {
  if (layer.tensor === 'bias') return { ...layer, k: rows, shape: [rows], a: columnsOf(layer.a, first, rows) }
  const { b, k, isInputMajor, scales } = layer
  return {
    ...layer,
    d: rows,
    experts: undefined,
    shape: isInputMajor ? [k, rows] : [rows, k],
    b: { ...b, offset: b.offset + first * b.columns * sizeOf(b.dtype), rows },
    scales: scales && columnsOf(scales, first, rows),
  }
}

function columnsOf(factor: Factor, first: number, columns: number): Factor {
  return { ...factor, offset: factor.offset + first * sizeOf(factor.dtype), columns }
}

/** Returns the layer with the orientation of its stored tensor: input-major or not. */
export function stackedLayer(layer: LayerFactors, info: TensorInfo, search: WeightSearch): LayerFactors {
  const { d, k, experts = 1 } = layer
  const layout = parameterLayout(info.shape, { experts, d, k }, d === k && isInputMajor(layer, search))
  if (layout === undefined) {
    throw new MismatchError({
      where: info.name,
      what: 'the adapter has another shape for this parameter',
      expected: formatShape(experts === 1 ? [d, k] : [experts, d, k]),
      got: formatShape(info.shape),
      hint: 'The adapter belongs to another base',
    })
  }
  return { ...layer, ...layout, shape: info.shape, experts: info.shape.length === 3 ? experts : undefined }
}

/** True if the parameter is stored input-major. If it is square, other parameters or the model's type tell. */
function isInputMajor({ name }: LayerFactors, { layers, names, checkpoint, config }: WeightSearch): boolean {
  for (const { name: module, tensor, experts, d, k } of layers) {
    if (module !== name || experts === undefined || d === k) continue
    const shape = checkpoint.tensors.get(`${names.locate(module)}.${tensor}`)?.info.shape
    if (shape?.length === 3) return shape[1] === k && shape[2] === d
  }
  return expertForm(config).isInputMajor
}
