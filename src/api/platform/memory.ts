// Checks whether a model fits into the memory of the machine, or of WebAssembly.

import { UnsupportedError } from '../../core/base/errors.js'
import { type MemoryLimit, type MemoryNeed, WASM_BYTES } from '../../model/memory.js'
import type { Model } from '../../model/model-folder.js'
import { platform } from './platform.js'

export function memoryLimits({ runtime }: Pick<Model, 'runtime'>): MemoryLimit[] {
  const free = platform().freeMemory?.()
  const isWeb = 'module' in runtime ? runtime.module.env?.versions?.web !== undefined : free === undefined
  return [
    ...(free === undefined ? [] : [{ bytes: free, of: 'this machine has free' }]),
    ...(isWeb ? [{ bytes: WASM_BYTES, of: 'WebAssembly has at most' }] : []),
  ]
}

export function checkWeightsFit(need: MemoryNeed, limits: readonly MemoryLimit[]): void {
  if (need.weights <= WASM_BYTES || !limits.some(({ bytes }) => bytes === WASM_BYTES)) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'its weights do not fit into WebAssembly, which has 4 GB',
    got: `${(need.weights / 1e9).toFixed(1)} GB`,
    hint: "Load it with dtype 'q4' or 'q4f16', or run it in Node",
  })
}
