// Inputs of the graph that reads the pictures of a vision-language model, as transformers.js publishes it: pictures of one size, tiles of
// them, or patches with their number.

import { UnsupportedError } from '../../base/errors.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'
import { PIXELS } from './pixels.js'
import { dimsOfInput, typeOf } from './roles.js'

/** In which pieces a graph takes a picture. */
export type PictureForm = 'whole' | 'tiles' | 'patches'

/** By the axes of its pixels: (batch, 3, height, width), (batch, tiles, 3, height, width), (patches, width). */
const FORMS: Readonly<Record<number, PictureForm>> = { 4: 'whole', 5: 'tiles', 2: 'patches' }

const TILE_MASK = 'pixel_attention_mask'
/** Number of patches: (pictures, 3), by time, height and width. */
const GRIDS = ['image_grid_thw', 'grid_thw']

/** A picture for a run of the graph: its pixels, and of patches how many there are by time, height and width. */
export interface VisionInput {
  readonly pixels: Float32Array
  readonly dims: readonly number[]
  readonly grid?: readonly number[] | undefined
}

/** Throws UnsupportedError for a graph with other inputs. */
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

/** One picture for the graph: all its pixels count. */
export function visionFeeds(graph: Pick<Graph, 'inputs'>, { pixels, dims, grid }: VisionInput): Feeds {
  const feeds: Record<string, Feeds[string]> = { [PIXELS]: { type: 'float32', data: pixels, dims } }
  for (const input of graph.inputs) {
    const { name } = input
    if (name === TILE_MASK) {
      const [batch, tiles, , height, width] = dims
      const count = batch * tiles * height * width
      const type = typeOf(input) === 'bool' ? 'bool' : 'int64'
      const data = type === 'bool' ? new Uint8Array(count).fill(1) : new BigInt64Array(count).fill(1n)
      feeds[name] = { type, data, dims: [batch, tiles, height, width] }
    } else if (GRIDS.includes(name) && grid !== undefined) {
      feeds[name] = { type: 'int64', data: BigInt64Array.from(grid, BigInt), dims: [1, 3] }
    }
  }
  return feeds
}
