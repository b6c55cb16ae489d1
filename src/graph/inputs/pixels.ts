// Inputs of models of images: pixel_values (batch, channels, height, width), and for some a mask of the pixels that are no padding.

import type { Feeds, RuntimeTensor } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'
import { typeOf } from './roles.js'

export const PIXELS = 'pixel_values'
const MASK = 'pixel_mask'

/** Feeds with a mask of all pixels where the caller leaves it out. */
export function completePixelFeeds(graph: Graph, feeds: Feeds): Feeds {
  const mask = graph.inputs.find(({ name }) => name === MASK)
  const pixels = feeds[PIXELS]
  if (mask === undefined || feeds[MASK] !== undefined || pixels?.dims.length !== 4) return feeds
  const dims = [pixels.dims[0], pixels.dims[2], pixels.dims[3]]
  const count = dims.reduce((product, dim) => product * dim, 1)
  const type = typeOf(mask)
  const all: RuntimeTensor =
    type === 'bool'
      ? { type, data: new Uint8Array(count).fill(1), dims }
      : { type: 'int64', data: new BigInt64Array(count).fill(1n), dims }
  return { ...feeds, [MASK]: all }
}
