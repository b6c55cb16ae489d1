// The floats of what a run gives.

import { f16ToF32 } from '../base/dtype.js'
import { UnsupportedError } from '../base/errors.js'
import type { RuntimeTensor } from '../runtime/runtime.js'

/** @throws UnsupportedError for a type that is none of f32 and f16 */
export function floatsOf({ data, type }: RuntimeTensor): Float32Array {
  if (data instanceof Float32Array) return data
  if (data instanceof Uint16Array && type === 'float16') return f16ToF32(data)
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'an output of a type that is not read',
    expected: 'float32, float16',
    got: type,
  })
}
