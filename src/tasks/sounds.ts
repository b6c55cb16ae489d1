// Sounds of rows and calls, in the numbers that speech models read.

import { DataError, FileError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import type { Model } from '../graph/model-folder.js'
import { type LogMel, logMel, type Sound } from '../sounds/log-mel.js'

/** A sound, or features of a sound (bands, times), row by row. */
export type SoundSource =
  | { readonly kind: 'sound'; readonly sound: Sound }
  | { readonly kind: 'features'; readonly values: Float32Array }

/** Names of their fields. */
export const SOUND_FIELDS = ['audio', 'input_features']

/** As data sets of the Hub have sounds: { array, sampling_rate }; or features as lists in a list. */
export function soundOf(name: string, value: unknown, where: string): SoundSource {
  const numbers = (list: unknown, place: string): Float32Array => {
    const isList = Array.isArray(list) || list instanceof Float32Array || list instanceof Float64Array
    const rows = isList ? Array.from(list as ArrayLike<number | ArrayLike<number>>) : []
    const values = Float32Array.from(rows.flatMap((row) => (typeof row === 'number' ? row : Array.from(row))))
    if (values.length > 0 && values.every(Number.isFinite)) return values
    throw new DataError({
      where: `${where}, ${place}`,
      what: 'not numbers',
      expected: name === 'audio' ? '{ array, sampling_rate }, with samples from −1 to 1' : 'lists of finite numbers',
      got: isList ? `${(list as ArrayLike<number>).length} entries` : kindOf(list),
    })
  }
  if (name === 'input_features') return { kind: 'features', values: numbers(value, name) }
  const { array, sampling_rate: rate } = isObject(value) ? value : {}
  if (typeof rate === 'number') return { kind: 'sound', sound: { samples: numbers(array, 'audio.array'), rate } }
  throw new DataError({
    where: `${where}, audio`,
    what: 'not a sound',
    expected: '{ array, sampling_rate }, with samples from −1 to 1. Files of sounds are not read',
    got: kindOf(value),
  })
}

/**
 * The numbers that a model reads of a sound.
 *
 * @param size (bands, times), as its graph takes them
 * @throws DataError for a sound of another rate, or another number of features; FileError when no file says how sounds
 *   become numbers
 */
export function soundFeatures(
  model: Model,
  source: SoundSource,
  [bands, times]: readonly [number, number],
  where: string,
): { readonly values: Float32Array; readonly isCut: boolean } {
  const isRead = source.kind === 'features'
  const read = isRead ? { ...source, isCut: false } : heard(model).features(source.sound, `${where}, audio`)
  if (read.values.length === bands * times) return read
  throw new DataError({
    where: isRead ? `${where}, input_features` : `${model.directory.name}/preprocessor_config.json`,
    what: 'not as many numbers as the model takes',
    expected: `${bands} x ${times}`,
    got: String(read.values.length),
  })
}

/** One for each model: filters and windows are made for all of its sounds. */
const PROCESSORS = new WeakMap<object, LogMel>()

function heard({ directory, preprocessorConfig }: Model): LogMel {
  const where = `${directory.name}/preprocessor_config.json`
  if (preprocessorConfig === undefined) {
    throw new FileError({
      where,
      what: 'missing: it says how sounds become numbers',
      hint: 'Copy it from where the model came from, or give "input_features" in the place of "audio"',
    })
  }
  const processor = PROCESSORS.get(preprocessorConfig) ?? logMel(preprocessorConfig, where)
  PROCESSORS.set(preprocessorConfig, processor)
  return processor
}

function kindOf(value: unknown): string {
  return value === null ? 'null' : Array.isArray(value) ? 'list' : typeof value
}
