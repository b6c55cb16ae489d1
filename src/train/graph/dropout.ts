// Draws dropout masks outside the graph, so that a resumed run gets the same masks as an unbroken one.

import { Random } from '../../core/base/random.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'

/** The random choice of a dropout mask. Equal draws drop the same elements. */
export interface DropoutDraw {
  readonly seed: number
  readonly step: number
  readonly run: number
}

/** A mask, bool (n, k), true for elements to keep. */
export interface DropoutMask {
  readonly input: string
  /** The value that the mask multiplies, (n, k). */
  readonly of: string
  readonly k: number
}

/** Steps of a probability: a 32-bit number gives two draws. */
const RESOLUTION = 1 << 16

/** Returns the exact probability of keeping an element. */
export function keepProbability(dropout: number): number {
  return Math.round((1 - dropout) * RESOLUTION) / RESOLUTION
}

/** Draws masks, which depend only on seed, step, run and layer. `rowsOf` gives n of each mask. */
export function maskFeeds(
  masks: readonly DropoutMask[],
  rowsOf: (mask: DropoutMask) => number,
  dropout: number,
  draw: DropoutDraw,
): Feeds {
  const threshold = keepProbability(dropout) * RESOLUTION
  return Object.fromEntries(
    masks.map((mask) => {
      const { input, k } = mask
      const rows = rowsOf(mask)
      const random = new Random(draw.seed, `dropout/${draw.step}/${draw.run}/${input}`)
      const data = new Uint8Array(rows * k)
      for (let i = 0; i < data.length; i += 2) {
        const bits = random.uint32()
        data[i] = (bits & 0xffff) < threshold ? 1 : 0
        if (i + 1 < data.length) data[i + 1] = bits >>> 16 < threshold ? 1 : 0
      }
      return [input, { type: 'bool', data, dims: [rows, k] } satisfies RuntimeTensor]
    }),
  )
}

/** Masks of one row that keep everything, for measuring shapes. */
export function openMasks(masks: readonly DropoutMask[]): Feeds {
  return Object.fromEntries(
    masks.map(({ input, k }) => [input, { type: 'bool', data: new Uint8Array(k).fill(1), dims: [1, k] }]),
  )
}
