// Graphs of two linear layers in each form, with PyTorch's numbers (tests/golden/forms), and how they are opened and
// compared.

import { readFileSync } from 'node:fs'
import { type Feeds, LoraAdapter, type OnnxModel, type RuntimeTensor } from '../../../src/api/node.js'
import { f16ToF32, f32ToF16 } from '../../../src/core/base/dtype.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { NodeProtoSchema } from '../../../src/onnx/format/gen/onnx_pb.js'
import { loadOnnx } from '../../../src/onnx/format/model.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import { asMatrix, goldenPath, tensorsOf, type Values } from '../../golden.js'
import { addInput, addOutput, DataType, emptyGraph, openGraph } from '../../onnx/toolkit.js'

const GOLDEN = JSON.parse(readFileSync(goldenPath('forms', 'golden.json'), 'utf8')) as {
  scaling: number
  quantizesInputs: Record<string, boolean>
}

/** The names of the folders. */
export const GOLDEN_FORMS = Object.keys(GOLDEN.quantizesInputs)

/** True if the graph turns its inputs into integers as it runs. */
export const quantizesInputs = (name: string) => GOLDEN.quantizesInputs[name]

/**
 * How far graphs that quantize their inputs may be from PyTorch. On processors without VNNI, ONNX Runtime adds pairs of
 * 8-bit products in 16 bits, which clips large ones, so everything that is computed there is less exact:
 * https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
 */
export const INTEGER_TOLERANCE = (await clipsIntegerProducts()) ? 0.1 : 5e-3

async function clipsIntegerProducts(): Promise<boolean> {
  const graph = emptyGraph(17)
  const [a, b] = [addInput(graph, 'a', DataType.UINT8, [1, 64]), addInput(graph, 'b', DataType.INT8, [64, 16])]
  graph.nodes.push(create(NodeProtoSchema, { opType: 'MatMulInteger', input: [a, b], output: ['y'] }))
  addOutput(graph, 'y', DataType.INT32)
  const session = await openGraph(graph)
  const { y } = await session.run({
    a: { type: 'uint8', data: new Uint8Array(64).fill(255), dims: [1, 64] },
    b: { type: 'int8', data: new Int8Array(64 * 16).fill(127), dims: [64, 16] },
  })
  await session.dispose()
  return Number(y.data[0]) !== 64 * 255 * 127
}

/**
 * The numbers of a form: x (2, 5, 48), the base's y (2, 5, 24), `adapted` and g with the shape of y; weights (d, k),
 * factors and gradients as fc1.weight, fc1.A, fc1.A.gradient.
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

/** Makes the adapter of both layers. */
export function formAdapter(numbers: FormNumbers): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 4, alpha: 4 * GOLDEN.scaling })
  for (const layer of ['fc1', 'fc2']) {
    const [a, b] = ['A', 'B'].map((part) => asMatrix(numbers.get(`${layer}.${part}`)!))
    adapter.addFactors(`model.${layer}`, a, b)
  }
  return adapter
}

/** Returns x in the graph's input type. */
export function feedsOfForm(name: string, numbers: FormNumbers): Feeds {
  const x = dataOf(numbers, 'x')
  return {
    x: isHalf(name) ? { type: 'float16', data: f32ToF16(x), dims: X_DIMS } : { type: 'float32', data: x, dims: X_DIMS },
  }
}

/** Converts an output of f32 or f16 to f32. */
export function floatsOfOutput({ data }: RuntimeTensor): Float32Array {
  return data instanceof Float32Array ? data : f16ToF32(data as Uint16Array)
}

export const isHalf = (name: string): boolean => name.endsWith('f16')
