// Features of sounds, (bands, times): the numbers that speech models read.

import { DataError } from '../base/errors.js'

export const FEATURES_FIELD = 'input_features'

export const HEAR =
  'Sounds are read as input_features: compute them with the processor of transformers.js (AutoProcessor), as for its own models'

/** Reads features: a list of lists, or one flat list. Throws DataError unless all are finite numbers. */
export function featuresOf(value: unknown, where: string): Float32Array {
  const isList = Array.isArray(value) || value instanceof Float32Array || value instanceof Float64Array
  const rows = isList ? Array.from(value as ArrayLike<number | ArrayLike<number>>) : []
  const values = Float32Array.from(rows.flatMap((row) => (typeof row === 'number' ? row : Array.from(row))))
  if (values.length > 0 && values.every(Number.isFinite)) return values
  throw new DataError({
    where: `${where}, ${FEATURES_FIELD}`,
    what: 'not numbers',
    expected: 'lists of finite numbers',
    got: isList ? `${rows.length} entries` : value === null ? 'null' : typeof value,
  })
}

export function checkSize(values: Float32Array, size: readonly [number, number], where: string): Float32Array {
  const [bands, times] = size
  if (values.length === bands * times) return values
  throw new DataError({
    where: `${where}, ${FEATURES_FIELD}`,
    what: 'not as many numbers as the model takes',
    expected: `${bands} x ${times}`,
    got: String(values.length),
  })
}
