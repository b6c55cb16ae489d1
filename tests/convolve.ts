// A two-dimensional convolution, straight from its definition.

import type { FloatArray, Tensor } from '../src/api/node.js'
import { elementCount } from '../src/core/base/tensor.js'

/** y[n, o, p, q] = Σ w[o, c, i, j] · x[n, c, p·stride + i·dilation − padding, …], by the definition. */
export function convolve(
  x: Tensor<FloatArray>,
  w: Tensor<FloatArray>,
  stride: number[],
  padding: number[],
  dilation: number[],
): Tensor<FloatArray> {
  const [n, channels, h, width] = x.shape
  const [d, , kh, kw] = w.shape
  const size = (input: number, kernel: number, i: number) =>
    Math.floor((input + 2 * padding[i] - dilation[i] * (kernel - 1) - 1) / stride[i]) + 1
  const shape = [n, d, size(h, kh, 0), size(width, kw, 1)]
  const data = new Float64Array(elementCount(shape))
  let at = 0
  for (let b = 0; b < n; b++)
    for (let o = 0; o < d; o++)
      for (let p = 0; p < shape[2]; p++)
        for (let q = 0; q < shape[3]; q++, at++)
          for (let c = 0; c < channels; c++)
            for (let i = 0; i < kh; i++)
              for (let j = 0; j < kw; j++) {
                const row = p * stride[0] + i * dilation[0] - padding[0]
                const column = q * stride[1] + j * dilation[1] - padding[1]
                if (row < 0 || row >= h || column < 0 || column >= width) continue
                const value = x.data[((b * channels + c) * h + row) * width + column]
                data[at] += w.data[((o * channels + c) * kh + i) * kw + j] * value
              }
  return { data, shape }
}
