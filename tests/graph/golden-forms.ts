// Graphs of two linear layers in each form, with PyTorch's numbers (tests/golden/forms), and how they are opened and
// compared.

import { readFileSync } from 'node:fs'
import { f16ToF32, f32ToF16 } from '../../src/base/dtype.js'
import { loadOnnx, type OnnxModel } from '../../src/formats/onnx/model.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import type { Feeds, RuntimeTensor } from '../../src/runtime/runtime.js'
import { asMatrix, goldenPath, tensorsOf, type Values } from '../golden.js'

const GOLDEN = JSON.parse(readFileSync(goldenPath('forms', 'golden.json'), 'utf8')) as {
  scaling: number
  quantizesInputs: Record<string, boolean>
}

/** Names of the folders. */
export const GOLDEN_FORMS = Object.keys(GOLDEN.quantizesInputs)

/** Whether the graph makes integers of its inputs as it runs. */
export const quantizesInputs = (name: string) => GOLDEN.quantizesInputs[name]

/**
 * x (2, 5, 48), y (2, 5, 24) of the base, `adapted` as y, g as y; weights (d, k), factors and gradients: fc1.weight,
 * fc1.A, fc1.A.gradient.
 */
export type FormNumbers = Values

export const X_DIMS = [2, 5, 48]

export function openForm(name: string): Promise<OnnxModel> {
  return loadOnnx(new NodeDirectory(goldenPath('forms', name)), 'model.onnx')
}

export function formNumbers(name: string): Promise<FormNumbers> {
  return tensorsOf(goldenPath('forms', name, 'numbers.safetensors'))
}

export function dataOf(numbers: FormNumbers, tensor: string): Float32Array {
  return numbers.get(tensor)!.data as Float32Array
}

/** The adapter of both layers. */
export function formAdapter(numbers: FormNumbers): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 4, alpha: 4 * GOLDEN.scaling })
  for (const layer of ['fc1', 'fc2']) {
    const [a, b] = ['A', 'B'].map((part) => asMatrix(numbers.get(`${layer}.${part}`)!))
    adapter.addFactors(`model.${layer}`, a, b)
  }
  return adapter
}

/** x in the type that the graph takes. */
export function feedsOfForm(name: string, numbers: FormNumbers): Feeds {
  const x = dataOf(numbers, 'x')
  return {
    x: isHalf(name) ? { type: 'float16', data: f32ToF16(x), dims: X_DIMS } : { type: 'float32', data: x, dims: X_DIMS },
  }
}

/** An output of either type as f32. */
export function floatsOfOutput({ data }: RuntimeTensor): Float32Array {
  return data instanceof Float32Array ? data : f16ToF32(data as Uint16Array)
}

export const isHalf = (name: string): boolean => name.endsWith('f16')
