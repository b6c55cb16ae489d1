// Positions of models that place pictures on a grid, as Qwen2-VL does: three numbers for each token. Those of text count up together; those
// of a picture are its time, row and column, from the position that follows the text before it. As get_rope_index of transformers.

import type { PictureVectors } from './pictures.js'

/** Positions (3, length) of a text's tokens. */
export function gridPositions(ids: readonly number[], pictures: PictureVectors | undefined): readonly number[][] {
  const axes: number[][] = [[], [], []]
  const grids = [...(pictures?.grids ?? [])]
  let next = 0
  for (let i = 0; i < ids.length; ) {
    const grid = ids[i] === pictures?.token ? grids.shift() : undefined
    if (grid === undefined) {
      for (const axis of axes) axis.push(next)
      next++
      i++
      continue
    }
    const [times, height, width] = grid
    for (let place = 0; place < times * height * width; place++) {
      axes[0].push(next + Math.floor(place / (height * width)))
      axes[1].push(next + (Math.floor(place / width) % height))
      axes[2].push(next + (place % width))
    }
    next += Math.max(times, height, width)
    i += times * height * width
  }
  return axes
}
