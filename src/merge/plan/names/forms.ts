// Layers of a tensor that the checkpoint has as rows of a larger tensor, in several, or turned.

import { MismatchError, UnsupportedError } from '../../../base/errors.js'
import { formatShape } from '../../../base/tensor.js'
import type { CheckpointTensor } from '../../../formats/checkpoint.js'
import type { LayerFactors } from '../adapters.js'
import { expertLayer, isInputMajorModel, layerOfRows } from '../experts.js'
import type { StoredForm } from './rules.js'

type Tensors = ReadonlyMap<string, CheckpointTensor>

export interface LayerPart {
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

/** Throws MismatchError where the tensors' shapes are others; UnsupportedError for turned rows. */
export function layersOfForm(
  layer: LayerFactors,
  form: StoredForm,
  tensors: Tensors,
  config: Readonly<Record<string, unknown>> | undefined,
): readonly LayerPart[] {
  const { tensors: names, isTurned, share } = form
  if (names[0].includes('*')) return expertLayers(layer, form, tensors, config)
  if (isTurned && (share !== undefined || names.length > 1)) throw unknownForm(names[0])
  if (share !== undefined) return [{ tensor: names[0], layer: sharedLayer(layer, names[0], share, tensors) }]
  if (isTurned) {
    const { d, k } = layer
    return [
      {
        tensor: names[0],
        layer: { ...layer, isInputMajor: !layer.isInputMajor, shape: layer.isInputMajor ? [d, k] : [k, d] },
      },
    ]
  }
  return joinedLayers(layer, names, tensors)
}

function sharedLayer(
  layer: LayerFactors,
  tensor: string,
  { first, rows, total }: NonNullable<StoredForm['share']>,
  tensors: Tensors,
): LayerFactors {
  const { shape } = tensors.get(tensor)!.info
  const [firstRow, count] = [(shape[0] * first) / total, (shape[0] * rows) / total]
  const own = layer.tensor === 'bias' ? layer.k : layer.d
  const isFitting = Number.isSafeInteger(firstRow) && count === own && (shape.length === 1 || shape[1] === layer.k)
  if (!isFitting || layer.isInputMajor || layer.experts !== undefined) {
    throw new MismatchError({
      where: tensor,
      what: `the adapter has another shape for ${layer.name}, which is ${rows} of ${total} parts of this tensor`,
      expected: formatShape([(own * total) / rows, ...(shape.length === 1 ? [] : [layer.k])]),
      got: formatShape(shape),
    })
  }
  return { ...layer, shape, region: { first: firstRow, count } }
}

/** The layers of tensors whose rows, one after the other, are the model's weight. */
function joinedLayers(layer: LayerFactors, names: readonly string[], tensors: Tensors): LayerPart[] {
  const { isInputMajor, tensor: own } = layer
  const isBias = own === 'bias'
  let row = 0
  const parts = names.map((tensor) => {
    const rows = tensors.get(tensor)!.info.shape[0]
    const first = row
    row += rows
    return { tensor, layer: layerOfRows(layer, first, rows) }
  })
  if (row === (isBias ? layer.k : layer.d) && !isInputMajor) return parts
  throw partsError(layer, names, row)
}

function expertLayers(
  layer: LayerFactors,
  { tensors: names, isTurned }: StoredForm,
  tensors: Tensors,
  config: Readonly<Record<string, unknown>> | undefined,
): LayerPart[] {
  const { experts, d, k } = layer
  if (experts === undefined) throw unknownForm(names[0])
  const namesOf = (expert: number) => names.map((name) => name.replace('*', String(expert)))
  const shapes = namesOf(0).map((name) => tensors.get(name)!.info.shape)
  const isOutputMajor = shapes.every((shape) => shape[1] === k) && sum(shapes, 0) === d
  const isInputMajor = shapes.every((shape) => shape[0] === k) && sum(shapes, 1) === d
  if (!isOutputMajor && !isInputMajor) throw partsError(layer, namesOf(0), sum(shapes, 0))
  // Square ones look alike both ways.
  const own = {
    ...layer,
    isInputMajor: isOutputMajor && isInputMajor ? isInputMajorModel(config) !== isTurned : isInputMajor,
  }
  const extra = namesOf(experts).find((name) => tensors.has(name))
  if (extra !== undefined)
    throw new MismatchError({
      where: extra,
      what: 'the base has more experts than the adapter',
      expected: `${experts}`,
    })
  return Array.from({ length: experts }, (_, expert) => {
    let row = 0
    return namesOf(expert).map((tensor, i) => {
      if (!tensors.has(tensor)) {
        throw new MismatchError({
          where: tensor,
          what: 'the base has fewer experts than the adapter',
          expected: `${experts}`,
        })
      }
      const rows = shapes[i][own.isInputMajor ? 1 : 0]
      const part = expertLayer(own, expert, row, rows)
      row += rows
      return { tensor, layer: part }
    })
  }).flat()
}

function sum(shapes: readonly (readonly number[])[], axis: number): number {
  return shapes.reduce((total, shape) => total + (shape[axis] ?? Number.NaN), 0)
}

function partsError({ name, tensor, d }: LayerFactors, names: readonly string[], rows: number): MismatchError {
  return new MismatchError({
    where: names[0],
    what: `the adapter has another shape for ${name}.${tensor}`,
    expected: `${d} rows in ${names.join(' and ')}`,
    got: `${rows}`,
  })
}
