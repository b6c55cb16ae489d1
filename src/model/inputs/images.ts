// Inputs of encoders over pictures.

import { UnsupportedError } from '../../core/base/errors.js'
import { DataType } from '../../onnx/format/tensors.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Graph } from '../../onnx/view/graph.js'
import { declaredOf, dimsOfInput, typeOf } from '../../onnx/view/value-info.js'
import { PIXELS } from './family.js'
import { ones } from './roles.js'

export function checkImageInputs(graph: Pick<Graph, 'inputs'>): void {
  const [input, ...others] = graph.inputs
  const isFloat = (declaredOf(input)?.elemType ?? DataType.FLOAT) === DataType.FLOAT
  if (input?.name === PIXELS && others.length === 0 && isFloat) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: graph.inputs.some(({ name }) => name === PIXELS)
      ? 'it reads more than pictures, or in another type than float32'
      : 'it does not read pictures',
    expected: `one input ${PIXELS}, float32`,
    got: `inputs ${graph.inputs.map(({ name }) => name).join(', ')}`,
  })
}

/** `pixels` are (batch, 3, height, width). */
export function imageFeeds(pixels: Float32Array, batch: number, height: number, width: number): Feeds {
  return { [PIXELS]: { type: 'float32', data: pixels, dims: [batch, 3, height, width] } }
}

export type PictureForm = 'whole' | 'tiles' | 'patches'

/** Number of axes → form: (batch, 3, height, width), (batch, tiles, 3, height, width) or (patches, width). */
const FORMS: Readonly<Record<number, PictureForm>> = { 4: 'whole', 5: 'tiles', 2: 'patches' }

const TILE_MASK = 'pixel_attention_mask'
/** Number of patches: (pictures, 3), by time, height and width. */
const GRIDS = ['image_grid_thw', 'grid_thw']

/** A picture for a vision encoder. `grid`: number of patches by time, height and width. */
export interface VisionInput {
  readonly pixels: Float32Array
  readonly dims: readonly number[]
  readonly grid?: readonly number[] | undefined
}

export function pictureForm(graph: Pick<Graph, 'inputs'>): PictureForm {
  const pixels = graph.inputs.find(({ name }) => name === PIXELS)
  const form = pixels && typeOf(pixels) === 'float32' ? FORMS[dimsOfInput(pixels).length] : undefined
  const known = [PIXELS, ...(form === 'tiles' ? [TILE_MASK] : []), ...(form === 'patches' ? GRIDS : [])]
  if (form !== undefined && graph.inputs.every(({ name }) => known.includes(name))) return form
  throw new UnsupportedError({
    where: 'vision_encoder',
    what: 'it takes pictures in a form that is not known',
    expected: `${PIXELS} in float32 of 4, 5 or 2 axes, of 5 with ${TILE_MASK}, of 2 with ${GRIDS[0]}`,
    got: graph.inputs.map((input) => `${input.name} of ${dimsOfInput(input).length} axes`).join(', '),
  })
}

export function visionFeeds(graph: Pick<Graph, 'inputs'>, { pixels, dims, grid }: VisionInput): Feeds {
  const feeds: Record<string, Feeds[string]> = { [PIXELS]: { type: 'float32', data: pixels, dims } }
  for (const input of graph.inputs) {
    const { name } = input
    if (name === TILE_MASK) {
      const [batch, tiles, , height, width] = dims
      feeds[name] = ones(typeOf(input) === 'bool' ? 'bool' : 'int64', [batch, tiles, height, width])
    } else if (GRIDS.includes(name) && grid !== undefined) {
      feeds[name] = { type: 'int64', data: BigInt64Array.from(grid, BigInt), dims: [1, 3] }
    }
  }
  return feeds
}
