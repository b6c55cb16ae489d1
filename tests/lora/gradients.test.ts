// Outputs and gradients of single layers, compared with PyTorch's autograd through PEFT's layers
// (tests/golden/gradients): DoRA, biases of B, and dropout.

import { describe, expect, test, vi } from 'vitest'
import { type FloatArray, type LoraConfigInput, LoraLayer, type Tensor } from '../../src/api/node.js'
import { dropFrom } from '../../src/lora/dropout.js'
import { asMatrix, deviation, goldenPath, readJson, tensorsOf } from '../golden.js'

// Dropout gets the mask that PyTorch used, instead of drawing one.
vi.mock('../../src/lora/dropout.js', { spy: true })

const { versions: _, ...cases } = readJson(goldenPath('gradients', 'cases.json')) as Record<
  string,
  { layer: string; config: LoraConfigInput & { dropout: number } }
>
const tensors = await tensorsOf(goldenPath('gradients', 'tensors.safetensors'))

/** Reads a golden tensor in the given precision. Golden values are f64 rounded to f32. */
function read(name: string, precision: 'f32' | 'f64'): Tensor<FloatArray> {
  const { data, shape } = tensors.get(name)!
  return { data: precision === 'f32' ? data.slice() : Float64Array.from(data), shape }
}

function expectEqual(got: Tensor<FloatArray>, expected: Tensor<FloatArray>, name: string): void {
  expect(got.shape, name).toEqual(expected.shape)
  expect(deviation(got.data, expected.data), name).toBeLessThan(1e-6)
}

const vector = (data: FloatArray | undefined) => data && { data, shape: [data.length] }

describe.each(['f32', 'f64'] as const)('in %s', (precision) => {
  test.each(Object.entries(cases))('%s', (name, { config }) => {
    const get = (part: string) => read(`${name}/${part}`, precision)
    const optional = (part: string) => (tensors.has(`${name}/${part}`) ? get(part).data : undefined)
    const vectors = { magnitude: optional('magnitude'), biasB: optional('bias') }
    const [a, b, weight, input, g] = ['lora_A', 'lora_B', 'weight', 'input', 'grad_output'].map(get)
    if (config.dropout > 0) {
      const keep = Uint8Array.from(get('keep').data)
      vi.mocked(dropFrom).mockImplementationOnce(({ data }, dropout) => {
        for (let i = 0; i < keep.length; i++) data[i] = keep[i] === 1 ? data[i] / (1 - dropout) : 0
        return keep
      })
    }
    const layer = LoraLayer.fromFactors(asMatrix(a), asMatrix(b), config, 'layer', vectors)
    const output = layer.attachBase(asMatrix(weight)).train().forward(asMatrix(input))
    const { magnitude, biasB, ...rest } = layer.backward(asMatrix(g))
    const gradients = { ...rest, magnitude: vector(magnitude), biasB: vector(biasB) }
    expectEqual(output, get('output'), 'output')
    const names = {
      weightA: 'lora_A',
      weightB: 'lora_B',
      input: 'input',
      magnitude: 'magnitude',
      biasB: 'bias',
    } as const
    for (const [member, part] of Object.entries(names) as [keyof typeof names, string][]) {
      const expected = tensors.has(`${name}/gradient/${part}`) ? get(`gradient/${part}`) : undefined
      const got = gradients[member]
      expect(got === undefined, member).toBe(expected === undefined)
      if (got !== undefined) expectEqual(got, expected!, member)
    }
  })
})

test('all kinds are here', () => {
  expect(Object.keys(cases)).toHaveLength(8)
})
