// preprocessor_config.json: the settings that all ways of reading pictures share, checked.

import { UnsupportedError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'

export type PreprocessorConfig = Readonly<Record<string, unknown>>

export interface Size {
  readonly width: number
  readonly height: number
}

const FILE = 'preprocessor_config.json'
/** The defaults of transformers for ViT. */
const DEFAULTS = { scale: 1 / 255, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] }

/** How bytes become a model's numbers: (byte · scale − mean) / std, for each color. */
export function scalingOf(config: PreprocessorConfig) {
  const factor = typeof config.rescale_factor === 'number' ? config.rescale_factor : DEFAULTS.scale
  const scale = config.do_rescale === false ? 1 : factor
  if (config.do_normalize === false) return { scale, mean: [0, 0, 0], std: [1, 1, 1] }
  const mean = listOf(config.image_mean, DEFAULTS.mean, 'image_mean')
  return { scale, mean, std: listOf(config.image_std, DEFAULTS.std, 'image_std') }
}

export function writePlanes(
  pixels: Uint8Array,
  { scale, mean, std }: ReturnType<typeof scalingOf>,
  output: Float32Array,
) {
  const count = pixels.length / 3
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < count; i++) output[c * count + i] = (pixels[i * 3 + c] * scale - mean[c]) / std[c]
  }
}

export function squareOf(size: unknown, where: string): Size {
  if (isCount(size)) return { width: size, height: size }
  if (Array.isArray(size) && size.length === 2 && size.every(isCount)) return { height: size[0], width: size[1] }
  if (isObject(size) && isCount(size.height) && isCount(size.width)) return { width: size.width, height: size.height }
  throw refuse(`${where} is not known`, '{ height, width }', JSON.stringify(size) ?? 'nothing')
}

export function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0
}

function listOf(value: unknown, fallback: readonly number[], where: string): readonly number[] {
  if (value === undefined || value === null) return fallback
  if (Array.isArray(value) && value.length === 3 && value.every((number) => typeof number === 'number')) return value
  throw refuse(`${where} is not known`, 'a list of 3 numbers', JSON.stringify(value))
}

export function refuse(what: string, expected: string, got: string): UnsupportedError {
  return new UnsupportedError({ where: FILE, what, expected, got })
}
