// Makes the text for the places of pictures: a token for each vector, and the text that transformers' processors put
// around these tokens.

import { UnsupportedError } from '../../core/base/errors.js'
import { modelType, typesWith } from '../families/families.js'
import type { Model } from '../model-folder.js'

export interface PictureSize {
  readonly count: number
  /** Rows and columns of tiles; 0 for an uncut picture. */
  readonly rows: number
  readonly columns: number
}

export interface PictureWriting {
  readonly token: number
  readonly mark: number
  write(size: PictureSize, nameOf: (id: number) => string): string
}

type Config = Model['config']
type Make = (token: number, config: Config) => PictureWriting

const alone: Make = (token) => ({ token, mark: token, write: ({ count }, nameOf) => nameOf(token).repeat(count) })

const between: Make = (token, { boi_token_index: begin, eoi_token_index: end }) => ({
  token,
  mark: begin as number,
  write: ({ count }, nameOf) =>
    `\n\n${nameOf(begin as number)}${nameOf(token).repeat(count)}${nameOf(end as number)}\n\n`,
})

/** Writes each tile with its row and column, then the whole picture. */
const tiles: Make = (token) => ({
  token,
  mark: token,
  write({ count, rows, columns }, nameOf) {
    const around = '<fake_token_around_image>'
    const tile = nameOf(token).repeat(count / (rows * columns + 1))
    const rowOf = (row: number) =>
      Array.from({ length: columns }, (_, column) => `${around}<row_${row + 1}_col_${column + 1}>${tile}`).join('')
    const lines = Array.from({ length: rows }, (_, row) => `${rowOf(row)}\n`)
    return `${lines.join('')}${rows > 0 ? '\n' : ''}${around}<global-img>${tile}${around}`
  },
})

const WRITINGS = { alone, between, tiles }

/** Returns how a model's prompts hold pictures, or undefined if it reads none or its way is not known. */
export function pictureWriting({ config }: Pick<Model, 'config'>): PictureWriting | undefined {
  const { pictures } = modelType(config.model_type)
  const token = [config.image_token_id, config.image_token_index].find(Number.isSafeInteger) as number | undefined
  if (token === undefined || pictures === undefined || !('vision_config' in config)) return undefined
  return WRITINGS[pictures](token, config)
}

export function readsNoPictures({ config }: Pick<Model, 'config'>): UnsupportedError {
  return new UnsupportedError({
    where: 'images',
    what: 'lowrank gives this model no pictures with its texts',
    expected: `a folder with embed_tokens.onnx and vision_encoder.onnx, whose config.json has a model_type of ${typesWith('pictures').join(', ')}`,
    got: `model_type ${JSON.stringify(config.model_type)}`,
  })
}

/** Returns positions (3, length) of tokens by time, height and width. Pictures lie on a grid, texts on its diagonal. */
export function gridPositions(
  ids: readonly number[],
  pictures: { readonly token: number; readonly grids: readonly (readonly number[])[] } | undefined,
): readonly number[][] {
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
