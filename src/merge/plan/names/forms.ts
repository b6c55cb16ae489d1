// Layers that a checkpoint stores in another form: rows of a larger tensor, several tensors, or transposed.

import { MismatchError, UnsupportedError } from '../../../core/base/errors.js'
import type { Checkpoint } from '../../../files/checkpoint.js'
import { expertForm } from '../../../model/families/families.js'
import type { LayerFactors } from '../adapters.js'
import { expertLayer, layerOfRows } from '../experts.js'
import type { WeightSearch } from '../orientation.js'
import type { StoredForm } from './rules.js'

type Tensors = Checkpoint['tensors']

interface LayerPart {
  readonly tensor: string
  readonly layer: LayerFactors
}

export function isPlain({ tensors, isTurned, share }: StoredForm): boolean {
  return tensors.length === 1 && !isTurned && share === undefined && !tensors[0].includes('*')
}

export function unknownForm(tensor: string): UnsupportedError {
  return new UnsupportedError({
    where: tensor,
    what: 'transformers stores this tensor in a form that is not implemented',
    hint: 'Merge this adapter with PEFT, into the model that transformers loads',
  })
}

/** Throws MismatchError if shapes of the tensors do not fit, and UnsupportedError for rows of a transposed tensor. */
export function layersOfForm(layer: LayerFactors, form: StoredForm, search: WeightSearch): readonly LayerPart[] {
  const { tensors: names, isTurned, share } = form
  const { tensors } = search.checkpoint
  const [tensor] = names
  if (tensor.includes('*')) return expertLayers(layer, form, search)
  if (isTurned && (share !== undefined || names.length > 1)) throw unknownForm(tensor)
  if (share !== undefined) return [{ tensor, layer: sharedLayer(layer, tensor, share, tensors) }]
  if (!isTurned) return joinedLayers(layer, names, tensors)
  const { d, k, isInputMajor } = layer
  return [{ tensor, layer: { ...layer, isInputMajor: !isInputMajor, shape: isInputMajor ? [d, k] : [k, d] } }]
}

function sharedLayer(
  layer: LayerFactors,
  tensor: string,
  { first, rows, total }: NonNullable<StoredForm['share']>,
  tensors: Tensors,
): LayerFactors {
  const { shape } = tensors.get(tensor)!.info
  const [firstRow, count] = [(shape[0] * first) / total, (shape[0] * rows) / total]
  const wanted = layer.tensor === 'bias' ? layer.k : layer.d
  const isFitting = Number.isSafeInteger(firstRow) && count === wanted && (shape.length === 1 || shape[1] === layer.k)
  if (!isFitting || layer.isInputMajor || layer.experts !== undefined) throw partsError(layer, [tensor], count)
  return { ...layer, shape, region: { first: firstRow, count } }
}

/** Splits a layer over tensors whose rows together are the model's weight. */
function joinedLayers(layer: LayerFactors, names: readonly string[], tensors: Tensors): LayerPart[] {
  let row = 0
  const parts = names.map((tensor) => {
    const rows = tensors.get(tensor)!.info.shape[0]
    const first = row
    row += rows
    return { tensor, layer: layerOfRows(layer, first, rows) }
  })
  if (row === (layer.tensor === 'bias' ? layer.k : layer.d) && !layer.isInputMajor) return parts
  throw partsError(layer, names, row)
}

function expertLayers(
  layer: LayerFactors,
  { tensors: names, isTurned }: StoredForm,
  { checkpoint: { tensors }, config }: WeightSearch,
): LayerPart[] {
  const { experts, d, k } = layer
  if (experts === undefined) throw unknownForm(names[0])
  const namesOf = (expert: number) => names.map((name) => name.replace('*', String(expert)))
  const shapes = namesOf(0).map((name) => tensors.get(name)!.info.shape)
  const isOutputMajor = shapes.every((shape) => shape[1] === k) && sum(shapes, 0) === d
  const isInputMajor = shapes.every((shape) => shape[0] === k) && sum(shapes, 1) === d
  if (!isOutputMajor && !isInputMajor) throw partsError(layer, namesOf(0), sum(shapes, 0))
  // The shape of a square matrix does not tell, so ask the model's type.
  const isTurnedHere = isOutputMajor && isInputMajor ? expertForm(config).isInputMajor !== isTurned : isInputMajor
  const turned = { ...layer, isInputMajor: isTurnedHere }
  const refuseCount = (isWrong: boolean, where: string) => {
    if (!isWrong) return
    const what = 'the base has another number of experts than the adapter'
    throw new MismatchError({ where, what, expected: `${experts}` })
  }
  for (const name of namesOf(experts)) refuseCount(tensors.has(name), name)
  return Array.from({ length: experts }, (_, expert) => {
    let row = 0
    return namesOf(expert).map((tensor, i) => {
      refuseCount(!tensors.has(tensor), tensor)
      const rows = shapes[i][turned.isInputMajor ? 1 : 0]
      const part = expertLayer(turned, expert, row, rows)
      row += rows
      return { tensor, layer: part }
    })
  }).flat()
}

function sum(shapes: readonly (readonly number[])[], axis: number): number {
  return shapes.reduce((total, shape) => total + (shape[axis] ?? Number.NaN), 0)
}

function partsError({ name, tensor, d, k }: LayerFactors, names: readonly string[], rows: number): MismatchError {
  return new MismatchError({
    where: names[0],
    what: `the adapter has another shape for ${name}.${tensor}`,
    expected: `${tensor === 'bias' ? k : d} rows in ${names.join(' and ')}`,
    got: `${rows}`,
  })
}
