// Pictures are processed as by Pillow and transformers.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { DataError, UnsupportedError } from '../../../src/api/node.js'
import { pixelsOf, readImage } from '../../../src/model/images/image.js'
import { imageProcessor } from '../../../src/model/images/processor.js'
import { resize } from '../../../src/model/images/resample.js'

const folder = 'tests/golden/image-classification'
const json = (path: string) => JSON.parse(readFileSync(`${folder}/${path}`, 'utf8'))

interface Picture {
  data: number[]
  width: number
  height: number
}

it("resizes to Pillow's bytes in all filters, up and down", () => {
  const { image, cases }: { image: Picture; cases: (Picture & { resample: number })[] } = json('resampled.json')
  const pixels = pixelsOf(image, 'image')
  expect(new Set(cases.map(({ resample }) => resample)).size).toBe(6)
  for (const { resample, width, height, data } of cases) {
    expect([...resize(pixels, width, height, resample).data], `${resample} to ${width} x ${height}`).toEqual(data)
  }
})

describe.each(['vit', 'dinov2'])('the processor of %s', (name) => {
  it("gives transformers' numbers for pictures of all sizes", () => {
    const { rows, pixels }: { rows: { image: Picture }[]; pixels: number[][][][] } = json(`${name}/golden/golden.json`)
    const processor = imageProcessor(json(`${name}/preprocessor_config.json`), undefined)
    expect([processor.height, processor.width]).toEqual([pixels[0][0].length, pixels[0][0][0].length])
    rows.forEach(({ image }, i) => {
      const output = new Float32Array(3 * processor.width * processor.height)
      processor.write(processor.fit(pixelsOf(image, 'image'), 'image'), output)
      const wanted = pixels[i].flat(2)
      output.forEach((value, at) => void expect(value).toBeCloseTo(wanted[at], 5))
    })
  })
})

describe('settings', () => {
  const picture = pixelsOf({ data: Array(4 * 2 * 3).fill(200), width: 4, height: 2 }, 'image')
  const numbers = (config: Record<string, unknown>, size?: number) => {
    const processor = imageProcessor(config, size)
    const output = new Float32Array(3 * processor.width * processor.height)
    processor.write(processor.fit(picture, 'cat.png'), output)
    return output
  }

  it('may leave out steps', () => {
    expect([...new Set(numbers({ size: 2, do_normalize: false, do_rescale: false }))]).toEqual([200])
    expect(numbers({ size: [2, 3] })).toHaveLength(3 * 2 * 3)
    // A picture that is too small gets a black border.
    const cut = numbers({
      do_resize: false,
      do_center_crop: true,
      crop_size: 4,
      do_normalize: false,
      do_rescale: false,
    })
    expect([...cut.slice(0, 16)]).toEqual([0, 0, 0, 0, 200, 200, 200, 200, 200, 200, 200, 200, 0, 0, 0, 0])
  })

  it('that are not known, or give several sizes, are refused', () => {
    expect(() => imageProcessor(undefined, 8)).toThrow(/preprocessor_config\.json: missing/)
    for (const [config, message] of [
      [{ size: { shortest_edge: 8 } }, /different sizes/],
      [{ size: { longest_edge: 8 } }, /size is not known/],
      [{ size: 8, resample: 9 }, /resample 9/],
      [{ size: 8, image_mean: [1] }, /image_mean/],
      [{ size: { shortest_edge: 8 }, crop_pct: 0.9 }, /crop_pct/],
    ] as const) {
      expect(() => imageProcessor(config, undefined)).toThrow(UnsupportedError)
      expect(() => imageProcessor(config, undefined)).toThrow(message)
    }
    expect(() => numbers({ do_resize: false }, 8)).toThrow(/cat\.png: the picture has another size.*8 x 8.*4 x 2/s)
  })
})

describe('pictures', () => {
  it('have red, green and blue, with alpha, or are gray', () => {
    const of = (data: number[]) => [...pixelsOf({ data, width: 2, height: 1 }, 'x').data]
    expect(of([1, 2, 3, 4, 5, 6])).toEqual([1, 2, 3, 4, 5, 6])
    expect(of([1, 2, 3, 0, 4, 5, 6, 9])).toEqual([1, 2, 3, 4, 5, 6])
    expect(of([7, 8])).toEqual([7, 7, 7, 8, 8, 8])
  })

  it.each([
    [{ data: [1, 2], width: 1, height: 1 }, /row 2: not a picture.*1 x 1 pixels with 2 numbers/s],
    [{ data: [], width: 0, height: 0 }, /not a picture/],
    [{ data: [300, 0, 0], width: 1, height: 1 }, /out of range.*300/s],
    [{ data: [Number.NaN, 0, 0], width: 1, height: 1 }, /out of range/],
    [3, /not a picture/],
  ])('are refused: %j', (image, message) => {
    expect(() => pixelsOf(image, 'row 2')).toThrow(DataError)
    expect(() => pixelsOf(image, 'row 2')).toThrow(message)
  })

  it('are read from files by a function, whose errors name the file', async () => {
    const decode = (file: string | Uint8Array) => {
      if (file === 'bad.png') throw new Error('Input file is missing')
      return { data: [1, 2, 3], width: 1, height: 1 }
    }
    expect((await readImage('good.png', decode, 'row 1')).data).toEqual(Uint8Array.of(1, 2, 3))
    expect((await readImage({ bytes: Uint8Array.of(9), path: 'a.png' }, decode, 'row 1')).width).toBe(1)
    await expect(readImage('bad.png', decode, 'row 1')).rejects.toThrow(
      /row 1, bad\.png: the picture cannot be read \(Input file is missing\)/,
    )
    await expect(readImage('good.png', undefined, 'row 1')).rejects.toThrow(/decodeImage/)
  })
})
