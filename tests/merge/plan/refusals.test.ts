// Bases that an adapter cannot be merged into, each with its reason: fused or separate modules, and quantized weights.

import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/base/bytes.js'
import type { TensorDtype } from '../../../src/base/dtype.js'
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

describe('fused modules', () => {
  const ATTENTION = 'model.layers.0.self_attn'
  const PHI3 = weights(`${ATTENTION}.qkv_proj`, `${ATTENTION}.o_proj`, 'model.layers.0.mlp.gate_up_proj')
  const LLAMA = weights(
    `${ATTENTION}.q_proj`,
    `${ATTENTION}.k_proj`,
    `${ATTENTION}.v_proj`,
    'model.layers.0.mlp.gate_proj',
    'model.layers.0.mlp.up_proj',
    'model.layers.1.mlp.up_proj',
  )

  it.each(['q_proj', 'k_proj', 'v_proj'])('an adapter on %s does not fit a fused base', async (name) => {
    expect(await refusal(PHI3, layer(`${ATTENTION}.${name}`))).toMatchObject({
      code: 'MISMATCH',
      what: expect.stringContaining(`${ATTENTION}.${name}`),
      hint:
        `The base has queries, keys and values in one module, ${ATTENTION}.qkv_proj: ` +
        `train the adapter on that, or merge into a base that has ${name}`,
    })
  })

  it('nor one on the gate and the up projection', async () => {
    for (const name of ['gate_proj', 'up_proj']) {
      expect((await refusal(PHI3, layer(`model.layers.0.mlp.${name}`))).hint).toContain(
        'gate and up projection in one module, model.layers.0.mlp.gate_up_proj',
      )
    }
  })

  it.each([
    ['gpt_neox.layers.3.attention.query_key_value', 'gpt_neox.layers.3.attention.q_proj'],
    ['transformer.h.3.attn.c_attn', 'transformer.h.3.attn.v_proj'],
    ['model.layers.3.attention.wqkv', 'model.layers.3.attention.wq'],
    ['encoder.layers.3.attn.Wqkv', 'encoder.layers.3.attention.self.query'],
  ])('%s takes no adapter on %s', async (fused, missing) => {
    expect((await refusal(weights(fused), layer(missing))).hint).toContain(`in one module, ${fused}:`)
  })

  it('an adapter on a fused module does not fit a base that has its parts', async () => {
    expect(await refusal(LLAMA, layer(`${ATTENTION}.qkv_proj`))).toMatchObject({
      code: 'MISMATCH',
      hint:
        `The base has queries, keys and values apart, in ${ATTENTION}.k_proj, ${ATTENTION}.q_proj, ${ATTENTION}.v_proj: ` +
        'train the adapter on those, or merge into a base that has qkv_proj',
    })
    const { hint } = await refusal(LLAMA, layer('model.layers.0.mlp.gate_up_proj'))
    expect(hint).toContain('apart, in model.layers.0.mlp.gate_proj, model.layers.0.mlp.up_proj:')
  })

  it('what is missing for another reason gets near names', async () => {
    expect((await refusal(PHI3, layer('model.layers.5.self_attn.q_proj'))).hint).toMatch(/^Nearest to the first: /)
  })
})

describe('quantized bases', () => {
  const module = 'model.q_proj'
  const tensor = (suffix: string, dtype: TensorDtype, shape: readonly number[]): TensorSketch => [
    module + suffix,
    dtype,
    shape,
  ]
  const CODES: [method: string, reason: RegExp, config: Record<string, unknown>, tensors: TensorSketch[]][] = [
    [
      'gptq',
      /GPTQ packs weights into 32-bit words with scales and zero points/,
      { quant_method: 'gptq', bits: 4 },
      [tensor('.qweight', 'I32', [1, 8]), tensor('.scales', 'fp16', [1, 8]), tensor('.g_idx', 'I32', [8])],
    ],
    [
      'awq',
      /AWQ packs weights into 32-bit words with scales and zero points/,
      { quant_method: 'awq', bits: 4 },
      [tensor('.qweight', 'I32', [8, 1]), tensor('.scales', 'fp16', [1, 8])],
    ],
    [
      'bitsandbytes',
      /bitsandbytes stores 4-bit codes or int8 rows with scales/,
      { quant_method: 'bitsandbytes', load_in_4bit: true },
      [tensor('.weight', 'U8', [32, 1]), tensor('.weight.absmax', 'U8', [1])],
    ],
    [
      'bitsandbytes',
      /bitsandbytes stores 4-bit codes or int8 rows with scales/,
      { load_in_8bit: true },
      [tensor('.weight', 'I8', [8, 8]), tensor('.SCB', 'fp32', [8])],
    ],
    [
      'fp8',
      /FP8 weights have scales of blocks/,
      { quant_method: 'fp8' },
      [tensor('.weight', 'F8_E4M3', [8, 8]), tensor('.weight_scale_inv', 'fp32', [1, 1])],
    ],
    [
      'mxfp4',
      /MXFP4 packs 4-bit floats with a shared exponent/,
      { quant_method: 'mxfp4' },
      [tensor('_blocks', 'U8', [8, 4]), tensor('_scales', 'U8', [8])],
    ],
    [
      'compressed-tensors',
      /compressed-tensors packs or scales weights/,
      { quant_method: 'compressed-tensors' },
      [tensor('.weight_packed', 'I32', [8, 1]), tensor('.weight_shape', 'I64', [2])],
    ],
  ]

  it.each(CODES)('%s, as config.json says: %s', async (method, reason, config, tensors) => {
    const error = await refusal(tensors, layer(module), { config: { quantization_config: config } })
    expect(error).toMatchObject({
      code: 'UNSUPPORTED',
      where: 'base/config.json',
      what: expect.stringContaining(`a quantized base (${method})`),
      hint: expect.stringContaining('Merge into the unquantized checkpoint'),
    })
    expect(error.message).toMatch(reason)
    const inner = { config: { text_config: { quantization_config: config } } }
    expect((await refusal(tensors, layer(module), inner)).message).toMatch(reason)
  })

  it.each(CODES)('%s, as its tensors betray: %s', async (method, _reason, _config, tensors) => {
    const error = await refusal(tensors, layer(module))
    expect(error).toMatchObject({ code: 'UNSUPPORTED', where: expect.stringContaining(module) })
    // AWQ leaves nothing that GPTQ could not leave too.
    expect(error.what).toContain(
      `a quantized base (${method === 'awq' ? 'gptq or awq' : method}) cannot be merged into: `,
    )
  })
})
