// Bases that an adapter cannot be merged into, each with its reason: missing modules, and quantized weights.

import { describe, expect, it } from 'vitest'
import { MemoryDirectory, type TensorDtype } from '../../../src/api/node.js'
import { adapter, type BaseOptions, base, mergeCheckpoint, type TensorSketch } from '../toolkit.js'

async function refusal(
  sketches: readonly TensorSketch[],
  layers: Parameters<typeof adapter>[0],
  options: BaseOptions = {},
) {
  const out = new MemoryDirectory()
  const error = await mergeCheckpoint(await base(sketches, options), adapter(layers), out).then(
    () => undefined,
    (thrown) => thrown,
  )
  expect(out.files.size).toBe(0)
  return error
}

const weights = (...modules: string[]) => modules.map((name): TensorSketch => [`${name}.weight`, 'bf16', [8, 8]])
const layer = (name: string) => ({ [name]: [8, 8] as const })

describe('missing modules', () => {
  it('get near names', async () => {
    const base = weights('model.layers.0.self_attn.qkv_proj', 'model.layers.0.self_attn.o_proj')
    const { hint } = await refusal(base, layer('model.layers.5.self_attn.o_proj'))
    expect(hint).toMatch(/^Nearest to the first: /)
  })
})

describe('quantized bases', () => {
  const module = 'model.q_proj'
  const tensor = (suffix: string, dtype: TensorDtype, shape: readonly number[]): TensorSketch => [
    module + suffix,
    dtype,
    shape,
  ]
  const CODES: [method: string, config: Record<string, unknown>, tensors: TensorSketch[]][] = [
    [
      'gptq',
      { quant_method: 'gptq', bits: 4 },
      [tensor('.qweight', 'I32', [1, 8]), tensor('.scales', 'fp16', [1, 8]), tensor('.g_idx', 'I32', [8])],
    ],
    ['awq', { quant_method: 'awq', bits: 4 }, [tensor('.qweight', 'I32', [8, 1]), tensor('.scales', 'fp16', [1, 8])]],
    [
      'bitsandbytes',
      { quant_method: 'bitsandbytes', load_in_4bit: true },
      [tensor('.weight', 'U8', [32, 1]), tensor('.weight.absmax', 'U8', [1])],
    ],
    ['bitsandbytes', { load_in_8bit: true }, [tensor('.weight', 'I8', [8, 8]), tensor('.SCB', 'fp32', [8])]],
    [
      'fp8',
      { quant_method: 'fp8' },
      [tensor('.weight', 'F8_E4M3', [8, 8]), tensor('.weight_scale_inv', 'fp32', [1, 1])],
    ],
    ['mxfp4', { quant_method: 'mxfp4' }, [tensor('_blocks', 'U8', [8, 4]), tensor('_scales', 'U8', [8])]],
    [
      'compressed-tensors',
      { quant_method: 'compressed-tensors' },
      [tensor('.weight_packed', 'I32', [8, 1]), tensor('.weight_shape', 'I64', [2])],
    ],
  ]

  it.each(CODES)('%s, as config.json says: %s', async (method, config, tensors) => {
    const error = await refusal(tensors, layer(module), { config: { quantization_config: config } })
    expect(error).toMatchObject({
      code: 'UNSUPPORTED',
      where: 'base/config.json',
      what: expect.stringContaining(`a quantized base (${method})`),
      hint: expect.stringContaining('Merge into the unquantized checkpoint'),
    })
    const inner = { config: { text_config: { quantization_config: config } } }
    expect((await refusal(tensors, layer(module), inner)).what).toBe(error.what)
  })

  it.each(CODES)('%s, as its tensors betray: %s', async (method, _config, tensors) => {
    const error = await refusal(tensors, layer(module))
    expect(error).toMatchObject({ code: 'UNSUPPORTED', where: expect.stringContaining(module) })
    // The tensors of an AWQ checkpoint could also come from GPTQ.
    expect(error.what).toContain(
      `a quantized base (${method === 'awq' ? 'gptq or awq' : method}) cannot be merged into: `,
    )
  })
})
