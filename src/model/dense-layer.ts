// Computes a Dense module of sentence-transformers, which changes a text's vector, in sessions and in training graphs.

import { type Directory, readJsonIfThere, withSource } from '../core/base/bytes.js'
import { MismatchError, UnsupportedError } from '../core/base/errors.js'
import { objectOf } from '../core/base/options.js'
import type { Tensor } from '../core/base/tensor.js'
import { parseSafetensorsHeader, readTensorF32 } from '../files/safetensors.js'
import { create } from '../onnx/format/protobuf.js'
import { DataType, TensorProtoSchema } from '../onnx/format/tensors.js'
import type { Builder, Value } from '../onnx/view/builder.js'

/** Activations by their names in PyTorch: each as an operator of ONNX, and as a function. */
const ACTIVATIONS: Readonly<Record<string, readonly [operator: string, of: (value: number) => number]>> = {
  Identity: ['Identity', (value) => value],
  Tanh: ['Tanh', Math.tanh],
  ReLU: ['Relu', (value) => Math.max(0, value)],
  Sigmoid: ['Sigmoid', (value) => 1 / (1 + Math.exp(-value))],
}

/** y = activation(W·x + b), with x or R·x added if there is a residual. */
export interface DenseLayer {
  /** (d, k) */
  readonly weight: Tensor
  readonly bias: Tensor | undefined
  /** Its name in PyTorch. */
  readonly activation: string
  /** The weight of a residual connection; `true` adds the input itself. */
  readonly residual: Tensor | boolean
}

export async function openDense(directory: Directory, path: string): Promise<DenseLayer> {
  const where = `${directory.name}/${path}`
  const config = objectOf(await readJsonIfThere(directory, `${path}/config.json`))
  const activation = String(config.activation_function ?? 'Tanh').replace(/^.*\./, '')
  const refuse = (what: string, expected: string, got: string) => new UnsupportedError({ where, what, expected, got })
  const known = Object.keys(ACTIVATIONS)
  if (!known.includes(activation))
    throw refuse('the activation of this Dense module is not implemented', known.join(', '), activation)
  const input = config.module_input_name ?? 'sentence_embedding'
  if (input !== 'sentence_embedding' || (config.module_output_name ?? input) !== input)
    throw refuse('a Dense module of token vectors is not implemented', 'sentence_embedding', String(input))
  const hasFile = await directory.has(`${path}/model.safetensors`)
  if (!hasFile) throw refuse('this Dense module has no weights', 'model.safetensors', 'no such file')
  return withSource(directory, `${path}/model.safetensors`, async (source) => {
    const file = await parseSafetensorsHeader(source)
    const read = (name: string) => readTensorF32(file, name)
    const isWide = file.tensors.has('residual.weight')
    return {
      weight: await read('linear.weight'),
      bias: file.tensors.has('linear.bias') ? await read('linear.bias') : undefined,
      activation,
      residual: isWide ? await read('residual.weight') : config.use_residual === true,
    }
  })
}

/** Applies a Dense module to a vector: (k) → (d). */
export function applyDense(x: Float32Array, { weight, bias, activation, residual }: DenseLayer): Float32Array {
  const [, activate] = ACTIVATIONS[activation]
  const added = typeof residual === 'object' ? product(residual, x) : residual ? x : undefined
  return product(weight, x).map((value, i) => activate(value + (bias?.data[i] ?? 0)) + (added?.[i] ?? 0))
}

/** Appends a Dense module to a graph: (n, k) → (n, d). */
export function appendDense(g: Builder, x: Value, { weight, bias, activation, residual }: DenseLayer): Value {
  const [operator] = ACTIVATIONS[activation]
  const times = (matrix: Tensor, ...more: Value[]) => g.op('Gemm', [x, appendTensor(g, matrix), ...more], { transB: 1 })
  const y = g.op(operator, [times(weight, ...(bias ? [appendTensor(g, bias)] : []))])
  return typeof residual === 'object' ? g.add(y, times(residual)) : residual ? g.add(y, x) : y
}

function appendTensor({ graph, scope }: Builder, { data, shape }: Tensor): Value {
  const rawData = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  const [name, dims] = [graph.freshName(`${scope}/dense`), shape.map(BigInt)]
  return graph.addInitializer(create(TensorProtoSchema, { name, dataType: DataType.FLOAT, dims, rawData }))
}

function product({ data, shape: [d, k] }: Tensor, x: Float32Array): Float32Array {
  if (k !== x.length) {
    const what = 'a Dense module expects vectors of another length'
    throw new MismatchError({ where: 'modules.json', what, expected: `${k} numbers`, got: `${x.length}` })
  }
  return Float32Array.from({ length: d }, (_, i) => {
    let sum = 0
    for (let j = 0; j < k; j++) sum += data[i * k + j] * x[j]
    return sum
  })
}
