// Inputs of vision-language models for pictures: pixels, tokens and positions equal those of transformers' processors.

import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { describe, expect, it } from 'vitest'
import { loadModel } from '../../../src/api/node.js'
import type { Pixels } from '../../../src/model/images/image.js'
import { patchesOf } from '../../../src/model/images/patches.js'
import { tilesOf } from '../../../src/model/images/tiles.js'
import { gridPositions } from '../../../src/model/pictures/picture-places.js'
import { PromptPictures } from '../../../src/model/pictures/pictures.js'
import { goldenPath } from '../../golden.js'
import { graphsFolder } from '../../several-graphs.js'

interface Summary {
  readonly length: number
  readonly sum: number
  readonly samples: number[]
}

const golden = JSON.parse(readFileSync(goldenPath('picture-inputs', 'expected.json'), 'utf8'))

function picture({ width, height }: { width: number; height: number }): Pixels {
  const data = new Uint8Array(width * height * 3)
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        data[(y * width + x) * 3 + c] = (5 * x + 3 * y + 50 * c + 9 * ((x * y) % 17)) % 256
      }
    }
  }
  return { data, width, height }
}

function expectPixels(pixels: Float32Array, { length, sum, samples }: Summary): void {
  expect(pixels.length).toBe(length)
  samples.forEach((sample, i) => {
    const place = Math.trunc((i * (length - 1)) / (samples.length - 1))
    expect(Math.abs(pixels[place] - sample)).toBeLessThan(2e-5)
  })
  expect(Math.abs(pixels.reduce((total, value) => total + value, 0) - sum)).toBeLessThan(length * 1e-6 + 0.01)
}

const named = (rows: { settings: object; width: number; height: number }[]) =>
  rows.map((row) => [`${row.width} x ${row.height}, ${JSON.stringify(row.settings).slice(0, 60)}`, row] as const)

describe('as transformers with Pillow', () => {
  it.each(named(golden.tiles))('tiles of %s', (_, row) => {
    const { settings, rows, columns, count, pixels } = row as (typeof golden.tiles)[number]
    const tiles = tilesOf(picture(row), settings)
    expect(tiles).toMatchObject({ rows, columns })
    expect(tiles.dims.slice(0, 3)).toEqual([1, count, 3])
    expectPixels(tiles.pixels, pixels)
  })

  it.each(named(golden.patches))('patches of %s', (_, row) => {
    const { settings, grid, pixels } = row as (typeof golden.patches)[number]
    const patches = patchesOf(picture(row), settings, 'image 1')
    expect(patches.grid).toEqual(grid)
    expectPixels(patches.pixels, pixels)
  })

  it('positions of a text with two pictures, of Qwen2-VL and Qwen2.5-VL', () => {
    for (const { token, inputIds, grids, positions } of golden.positions) {
      const merged = grids.map(([times, rows, columns]: number[]) => [times, rows / 2, columns / 2])
      const pictures = { token, data: new Float32Array(), count: 7, width: 0, grids: merged }
      expect(gridPositions(inputIds, pictures)).toEqual(positions)
    }
  })

  it('tokens of a prompt for Gemma 3, whose pictures are between two tokens', async () => {
    const runtime = { module: ort }
    const model = await loadModel(graphsFolder('llava'), { runtime })
    for (const { config, prompt, inputIds } of golden.texts) {
      const { vision_config } = model.config
      const session = {
        model: { ...model, config: { ...config, vision_config } },
        decodeImage: undefined,
        see: async () => ({
          image_features: { type: 'float32' as const, data: new Float32Array(64), dims: [1, 4, 16] },
        }),
      }
      const images = [picture({ width: 50, height: 37 }), picture({ width: 16, height: 16 })]
      const pictures = new PromptPictures(session, images, 'prompt')
      expect(model.tokenizer?.encode(await pictures.fill(prompt))).toEqual(inputIds)
      pictures.check(inputIds)
      expect(pictures.vectors).toMatchObject({ count: 8, width: 16 })
    }
    await model.close()
  })
})

describe('what is not known is refused by name', () => {
  const small = picture({ width: 4, height: 4 })
  it.each([
    ['a filter', () => tilesOf(small, { resample: 9 }), /a filter that is not known.*resample 9/],
    ['no size of tiles', () => tilesOf(small, {}), /max_image_size is not known/],
    ['a size', () => tilesOf(small, { max_image_size: { longest_edge: 2 }, size: { a: 1 } }), /size is not known/],
    ['patches', () => patchesOf(small, { patch_size: 'x' }, 'image 1'), /patch_size is not known/],
    ['pixels', () => patchesOf(small, { min_pixels: -1 }, 'image 1'), /size is not known/],
    ['a filter of patches', () => patchesOf(small, { resample: 9 }, 'image 1'), /a filter that is not known/],
    [
      'a long picture',
      () => patchesOf(picture({ width: 300, height: 1 }), {}, 'image 1'),
      /image 1: the picture is too long.*got 300 x 1 pixels/,
    ],
    [
      'another size, where nothing is resized',
      () => patchesOf(small, { do_resize: false }, 'image 2'),
      /image 2: the picture has another size.*multiples of 28 pixels, got 4 x 4/,
    ],
  ] as const)('%s', (_, make, message) => {
    expect(make).toThrow(message)
  })
})
