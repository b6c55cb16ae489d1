// What a convolution sees: the window of each output position as a row of a matrix (im2col), so that a convolution is a product
// with its flattened kernels; and the way back. Geometry as PyTorch has it, of any number of spatial dimensions.

import { ConfigError, ShapeError } from '../../base/errors.js'
import { elementCount, type FloatArray, formatShape, type Matrix, type Tensor, zeros } from '../../base/tensor.js'

/** How a kernel moves over its input, in PyTorch's words; one number for all dimensions or one each. Around the input are zeros. */
export interface ConvolutionGeometry {
  /** Default 1. */
  stride?: number | readonly number[] | undefined
  /** Default 0. `same` goes with stride 1 alone. */
  padding?: number | readonly number[] | 'same' | 'valid' | undefined
  /** Default 1. */
  dilation?: number | readonly number[] | undefined
}

/** The geometry of one kernel, one number a dimension. */
export interface Steps {
  readonly kernel: readonly number[]
  readonly stride: readonly number[]
  readonly dilation: readonly number[]
  /** Zeros before the first element, and before and after together. */
  readonly before: readonly number[]
  readonly around: readonly number[]
}

/** Which element of a channel each output position reads at each element of the kernel. */
export interface Windows {
  /** Spatial sizes of input and output. */
  readonly input: readonly number[]
  readonly output: readonly number[]
  /** (P, K), P output positions and K elements of the kernel; −1 in the padding. */
  readonly indices: Int32Array
  /** K */
  readonly kernelSize: number
}

/** @throws ConfigError when a setting is not valid for the kernel */
export function stepsOf(
  kernel: readonly number[],
  { stride = 1, padding = 0, dilation = 1 }: ConvolutionGeometry,
  where: string,
): Steps {
  const each = (setting: string, value: number | readonly number[], least: number) => {
    const values = typeof value === 'number' ? kernel.map(() => value) : value
    if (values.length === kernel.length && values.every((item) => Number.isSafeInteger(item) && item >= least)) {
      return values
    }
    throw new ConfigError({
      where: `${where}.${setting}`,
      what: 'not valid',
      expected: `an integer of at least ${least}, or ${kernel.length} of them`,
      got: JSON.stringify(value),
    })
  }
  const strides = each('stride', stride, 1)
  const dilations = each('dilation', dilation, 1)
  if (padding !== 'same') {
    const before = padding === 'valid' ? kernel.map(() => 0) : each('padding', padding, 0)
    return { kernel, stride: strides, dilation: dilations, before, around: before.map((count) => 2 * count) }
  }
  if (strides.some((step) => step !== 1)) {
    throw new ConfigError({ where: `${where}.padding`, what: '‘same’ works only with stride 1' })
  }
  const around = kernel.map((size, i) => dilations[i] * (size - 1))
  const before = around.map((count) => Math.floor(count / 2))
  return { kernel, stride: strides, dilation: dilations, before, around }
}

/** @throws ShapeError when the padded input is smaller than the kernel */
export function windowsOf(input: readonly number[], steps: Steps, where: string): Windows {
  const { kernel, stride, dilation, before, around } = steps
  const output = input.map((size, i) => {
    return Math.floor((size + around[i] - dilation[i] * (kernel[i] - 1) - 1) / stride[i]) + 1
  })
  if (output.some((size) => size < 1)) {
    throw new ShapeError({
      where,
      what: 'the kernel is larger than the padded input',
      expected: `at least ${formatShape(kernel.map((size, i) => dilation[i] * (size - 1) + 1 - around[i]))}`,
      got: formatShape(input),
    })
  }
  const kernelSize = elementCount(kernel)
  const indices = new Int32Array(elementCount(output) * kernelSize)
  let at = 0
  for (const position of coordinates(output)) {
    for (const element of coordinates(kernel)) {
      let index = 0
      for (let i = 0; i < input.length && index >= 0; i++) {
        const x = position[i] * stride[i] + element[i] * dilation[i] - before[i]
        index = x < 0 || x >= input[i] ? -1 : index * input[i] + x
      }
      indices[at++] = index
    }
  }
  return { input, output, indices, kernelSize }
}

/** Row-major walk over a shape; the yielded array is the same one each time. */
function* coordinates(shape: readonly number[]): Generator<readonly number[]> {
  const at = shape.map(() => 0)
  for (let count = elementCount(shape); count > 0; count--) {
    yield at
    for (let i = shape.length - 1; i >= 0 && ++at[i] === shape[i]; i--) at[i] = 0
  }
}

/** (n, c, ...input) → (n·P, c·K): a row for each output position, channels before elements of the kernel. */
export function unfold({ data, shape }: Tensor<FloatArray>, windows: Windows): Matrix {
  const [n, channels] = shape
  const result = zeros(n * elementCount(windows.output), channels * windows.kernelSize, data)
  eachElement(shape, windows, (at, index) => {
    result.data[at] = data[index]
  })
  return result
}

/** Calls `visit` for each element of the unfolded matrix that is not in the padding, with the element of the tensor that is there. */
function eachElement(
  [n, channels]: readonly number[],
  { input, output, indices, kernelSize }: Windows,
  visit: (at: number, index: number) => void,
): void {
  const [size, positions] = [elementCount(input), elementCount(output)]
  let at = 0
  for (let i = 0; i < n; i++) {
    for (let p = 0; p < positions; p++) {
      for (let c = 0, start = i * channels * size; c < channels; c++, start += size) {
        for (let q = p * kernelSize; q < (p + 1) * kernelSize; q++, at++) {
          if (indices[q] >= 0) visit(at, start + indices[q])
        }
      }
    }
  }
}

/** (n·P, c·K) → (n, c, ...input), added to `target`: what goes back through unfold. */
export function addFolded(target: Tensor<FloatArray>, { data }: Matrix, windows: Windows): Tensor<FloatArray> {
  eachElement(target.shape, windows, (at, index) => {
    target.data[index] += data[at]
  })
  return target
}

/** (n·P, d), rows by output position → (n, d, ...output). */
export function rowsToTensor({ data, shape: [rows, d] }: Matrix, output: readonly number[]): Tensor<FloatArray> {
  const positions = elementCount(output)
  const n = rows / positions
  const result = zeros(n * d, positions, data)
  let at = 0
  for (let i = 0; i < n; i++) {
    for (let p = 0; p < positions; p++) {
      for (let j = 0; j < d; j++) result.data[(i * d + j) * positions + p] = data[at++]
    }
  }
  return { data: result.data, shape: [n, d, ...output] }
}

/** (n, d, ...output) → (n·P, d): the way back. */
export function tensorToRows({ data, shape: [n, d, ...output] }: Tensor<FloatArray>): Matrix {
  const positions = elementCount(output)
  const result = zeros(n * positions, d, data)
  let at = 0
  for (let i = 0; i < n; i++) {
    for (let p = 0; p < positions; p++) {
      for (let j = 0; j < d; j++) result.data[at++] = data[(i * d + j) * positions + p]
    }
  }
  return result
}
