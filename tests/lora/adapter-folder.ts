// Makes right and wrong adapter folders for tests, and returns the error of loading one.

import { expect } from 'vitest'
import { type FloatDtype, LowrankError, loadAdapter, MemoryDirectory, type TensorDtype } from '../../src/api/node.js'
import { encodeFloats } from '../../src/core/base/dtype.js'
import { elementCount } from '../../src/core/base/tensor.js'
import { saveSafetensors, type TensorBytes } from '../../src/files/safetensors.js'

export const A = 'base_model.model.q_proj.lora_A.weight'
export const B = 'base_model.model.q_proj.lora_B.weight'
export const CONFIG = { peft_type: 'LORA', r: 2, lora_alpha: 4, target_modules: ['q_proj'] }

export function tensor(name: string, shape: number[], dtype: TensorDtype = 'fp32', value = 0.5): TensorBytes {
  const values = new Float32Array(elementCount(shape)).fill(value)
  return { name, dtype, shape, data: encodeFloats(values, dtype as FloatDtype) }
}

export const PAIR = [tensor(A, [2, 3]), tensor(B, [4, 2])]

/** @param config the config, or a text to write invalid JSON */
export async function adapterFolder(config: unknown = CONFIG, tensors: TensorBytes[] = PAIR): Promise<MemoryDirectory> {
  const text = typeof config === 'string' ? config : JSON.stringify(config)
  const directory = new MemoryDirectory({ 'adapter_config.json': text }, 'adapter')
  await saveSafetensors(directory, 'adapter_model.safetensors', tensors)
  return directory
}

export async function failure(directory: MemoryDirectory): Promise<LowrankError> {
  const error = await loadAdapter(directory).then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(LowrankError)
  return error
}
