import { describe, expect, it } from 'vitest'
import { type ByteSource, type LoraAdapter, MemoryDirectory } from '../../../src/api/node.js'
import { encodeFloats } from '../../../src/core/base/dtype.js'
import { parseSafetensorsHeader } from '../../../src/files/safetensors.js'
import { CHUNK_BYTES, coalesce } from '../../../src/merge/plan/layout.js'
import {
  adapter,
  base,
  compareStored,
  expectedWeight,
  floats,
  mergeCheckpoint,
  readTensors,
  safetensors,
  type TensorSketch,
} from '../toolkit.js'

const TIED: TensorSketch[] = [
  ['model.embed_tokens.weight', 'bf16', [32, 16]],
  ['model.q_proj.weight', 'bf16', [24, 16]],
  ['model.norm.weight', 'fp32', [16]],
]
const HEAD = 'lm_head'
const EMBEDDING = 'model.embed_tokens.weight'

async function run(from: MemoryDirectory, lora: LoraAdapter, options: object = {}) {
  const out = new MemoryDirectory({}, 'out')
  const report = await mergeCheckpoint(from, lora, out, options)
  return { out, report, after: await readTensors(out), before: await readTensors(from) }
}

/** Returns the error of a refused merge, and expects that nothing was written. */
async function refusal(from: MemoryDirectory, lora: LoraAdapter, options: object = {}) {
  const out = new MemoryDirectory({}, 'out')
  const error = await mergeCheckpoint(from, lora, out, options).then(
    () => undefined,
    (thrown) => thrown,
  )
  expect(out.files.size).toBe(0)
  return error
}

it('joins copied bytes that follow each other in one source and in the output, and no others', () => {
  const copied = (offset: number, source: number, baseOffset: number) => ({
    ...{ offset, byteLength: 4, source, baseOffset },
    weight: undefined,
  })
  const start = copied(8, 0, 16)
  expect(coalesce([start, copied(12, 0, 20)])).toEqual([{ ...start, byteLength: 8 }])
  for (const next of [copied(12, 1, 20), copied(12, 0, 24), copied(16, 0, 20)]) {
    expect(coalesce([start, next])).toEqual([start, next])
  }
})

describe('strictness', () => {
  it('takes a square weight to be stored as the others are, whatever the adapter says', async () => {
    const turned = await base([
      ['square.weight', 'fp32', [16, 16]],
      ['wide.weight', 'fp32', [16, 24]],
    ])
    const [wrong, right] = [false, true].map((fanInFanOut) => {
      return adapter({ square: [16, 16], wide: [24, 16] }, { fanInFanOut })
    })
    expect((await run(turned, wrong)).after).toEqual((await run(turned, right)).after)
  })

  it('names layers without a weight and what comes near', async () => {
    const error = await refusal(await base(TIED), adapter({ 'model.q_projs': [24, 16] }))
    expect(error).toMatchObject({ code: 'MISMATCH', hint: expect.stringContaining('model.q_proj') })
    expect(error.message).toContain('none of its layers')
    const some = await refusal(await base(TIED), adapter({ 'model.q_proj': [24, 16], 'model.x_proj': [4, 4] }))
    expect(some.message).toContain('model.x_proj')
  })

  it('checks shapes, and says when the vocabulary is another', async () => {
    expect(await refusal(await base(TIED), adapter({ 'model.q_proj': [16, 20] }))).toMatchObject({
      code: 'MISMATCH',
      got: '(24, 16)',
    })
    const untied = await base([...TIED, ['lm_head.weight', 'bf16', [32, 16]]])
    expect(await refusal(untied, adapter({ lm_head: [40, 16] }))).toMatchObject({
      hint: expect.stringContaining('vocabulary'),
    })
  })

  it.each([
    [{ quantization_config: { quant_method: 'gptq' } }, 'gptq'],
    [{ quantization_config: { quant_method: 'awq' } }, 'awq'],
    [{ quantization_config: { load_in_4bit: true } }, 'bitsandbytes'],
    [{ quantization_config: { quant_method: 'fp8' } }, 'fp8'],
    [{ quantization_config: { quant_method: 'mxfp4' } }, 'mxfp4'],
  ])('refuses quantized bases: %j', async (config, method) => {
    const error = await refusal(await base(TIED, { config }), adapter({ 'model.q_proj': [24, 16] }))
    expect(error).toMatchObject({ code: 'UNSUPPORTED' })
    expect(error.message).toContain(method)
  })

  it('refuses weights of other types, and quantized ones that only their tensors betray', async () => {
    const lora = adapter({ 'model.q_proj': [24, 16] })
    expect(await refusal(await base([['model.q_proj.weight', 'F8_E4M3', [24, 16]]]), lora)).toMatchObject({
      got: 'F8_E4M3',
    })
    expect(await refusal(await base([['model.q_proj.qweight', 'I32', [2, 16]]]), lora)).toMatchObject({
      code: 'UNSUPPORTED',
    })
  })

  it("finds weights where the checkpoint leaves the model's own prefix out, or has one more", async () => {
    const from = await base([['h.0.q_proj.weight', 'fp32', [4, 4]]])
    const { before, after } = await run(from, adapter({ 'transformer.h.0.q_proj': [4, 4] }))
    expect(after.get('h.0.q_proj.weight')).not.toEqual(before.get('h.0.q_proj.weight'))
    const more = await base([['bert.q_proj.weight', 'fp32', [4, 4]]])
    expect((await run(more, adapter({ q_proj: [4, 4] }))).report.changed).toBe(1)
  })

  it.each([false, true])('names a factor that is not finite (fanInFanOut %s)', async (fanInFanOut) => {
    const from = await base([['m.weight', 'fp32', fanInFanOut ? [16, 24] : [24, 16]]])
    for (const role of ['weightA', 'weightB'] as const) {
      for (const value of [Number.NaN, Number.NEGATIVE_INFINITY]) {
        const lora = adapter({ m: [24, 16] }, { fanInFanOut })
        const { data } = lora.layer('m')[role]
        data[data.length - 1] = value
        expect(await refusal(from, lora)).toMatchObject({ code: 'NUMERIC', where: `m.${role}`, got: String(value) })
      }
    }
  })

  it('names results that are not finite where the base was', async () => {
    const half = await base([['q_proj.weight', 'fp16', [24, 16]]])
    const large = adapter({ q_proj: [24, 16] }, { alpha: 1e7 })
    expect(await refusal(half, large)).toMatchObject({ code: 'NUMERIC', where: 'q_proj.weight' })
  })

  it("names values of the adapter's own that do not fit the base's type", async () => {
    const from = await base([
      ['q_proj.weight', 'fp16', [24, 16]],
      ['embed.weight', 'fp16', [32, 16]],
      ['score.weight', 'fp16', [8, 16]],
    ])
    const large = (rows: number, at: number) => {
      const data = encodeFloats(new Float32Array(rows * 16).fill(1).fill(70_000, at, at + 1), 'fp32')
      return { dtype: 'fp32' as const, shape: [rows, 16], data }
    }
    const whole = adapter({ q_proj: [24, 16] })
    whole.addReplacement('score.weight', large(8, 2 * 16 + 5))
    const rows = adapter({ q_proj: [24, 16] })
    rows.addTokenRows('embed', [3, 30], large(2, 16 + 7))
    for (const [lora, where] of [
      [whole, 'score.weight'],
      [rows, 'embed.weight'],
    ] as const) {
      expect(await refusal(from, lora)).toMatchObject({
        code: 'NUMERIC',
        where,
        what: expect.stringContaining('is finite in fp32, but not in the result in fp16'),
        hint: 'This type is too narrow for these values: bf16 and fp32 can store larger ones',
      })
    }
    // The requested type cannot hold the base's own values.
    const data = encodeFloats(new Float32Array(64).fill(70_000), 'fp32')
    const wide = new MemoryDirectory({
      'model.safetensors': await safetensors([{ name: 'q_proj.weight', dtype: 'fp32', shape: [8, 8], data }]),
    })
    expect(await refusal(wide, adapter({ q_proj: [8, 8] }), { outDtype: 'fp16' })).toMatchObject({
      where: 'q_proj.weight',
      what: expect.stringContaining('is finite in fp32'),
    })
  })

  it('lets values through that were not finite in the base', async () => {
    const values = Float32Array.from({ length: 64 }, (_, i) =>
      i === 9 ? Number.POSITIVE_INFINITY : i === 10 ? Number.NaN : 1,
    )
    const data = encodeFloats(values, 'bf16')
    const from = new MemoryDirectory({
      'model.safetensors': await safetensors([{ name: 'q_proj.weight', dtype: 'bf16', shape: [8, 8], data }]),
    })
    const { after } = await run(from, adapter({ q_proj: [8, 8] }))
    const result = floats(after.get('q_proj.weight')!)
    expect([result[9], result[10]]).toEqual([Number.POSITIVE_INFINITY, Number.NaN])
    expect(Number.isFinite(result[11])).toBe(true)
  })
})

describe('tied embeddings', () => {
  const config = { model_type: 'llama', tie_word_embeddings: true }
  const lora = adapter({ [HEAD]: [32, 16] })

  it('are refused where it is not known what is tied', async () => {
    expect(await refusal(await base(TIED, { config: {} }), lora)).toMatchObject({ code: 'MISMATCH' })
  })

  it('untie: the head gets a weight of its own and config.json says so', async () => {
    const { out, after, before } = await run(await base(TIED, { config: { ...config, x: 1 } }), lora)
    expect(after.get(EMBEDDING)).toEqual(before.get(EMBEDDING))
    const expected = expectedWeight(before.get(EMBEDDING)!, [[lora, HEAD]])
    expect(compareStored(after.get('lm_head.weight')!.bytes, expected, 'bf16').differing).toBeLessThanOrEqual(1)
    expect(JSON.parse(new TextDecoder().decode(out.files.get('config.json')))).toEqual({
      model_type: 'llama',
      tie_word_embeddings: false,
      x: 1,
    })
  })

  it.each([
    ['BertModel', true],
    ['LlamaForSequenceClassification', true],
    ['LlamaForCausalLM', false],
    ['GPT2LMHeadModel', false],
    ['EncoderDecoderModel', false],
  ])('an embedding of a %s has nothing to be tied to: %s', async (architecture, isHeadless) => {
    const from = await base(TIED, { config: { ...config, architectures: [architecture] } })
    const embedding = adapter({ 'model.embed_tokens': [32, 16] })
    expect((await run(from, embedding)).after.has('lm_head.weight')).toBe(!isHeadless)
    if (isHeadless) expect(await refusal(from, lora)).toMatchObject({ code: 'MISMATCH' })
    else expect((await run(from, lora)).after.has('lm_head.weight')).toBe(true)
  })

  it('keep: the one weight changes', async () => {
    const { out, after, before } = await run(await base(TIED, { config }), lora, { tied: 'keep' })
    const expected = expectedWeight(before.get(EMBEDDING)!, [[lora, HEAD]])
    expect(compareStored(after.get(EMBEDDING)!.bytes, expected, 'bf16').differing).toBeLessThanOrEqual(1)
    expect(after.has('lm_head.weight')).toBe(false)
    expect(JSON.parse(new TextDecoder().decode(out.files.get('config.json')))).toEqual(config)
  })
})

describe('dtype and shards on request', () => {
  const lora = adapter({ 'model.q_proj': [24, 16] })

  it('converts every float with one rounding and says so in config.json', async () => {
    const from = await base(TIED, { config: { tie_word_embeddings: false, torch_dtype: 'bfloat16' }, shards: 2 })
    const { out, after, before } = await run(from, lora, { outDtype: 'fp32' })
    expect([...after.values()].map(({ dtype }) => dtype)).toEqual(['fp32', 'fp32', 'fp32'])
    expect(floats(after.get(EMBEDDING)!)).toEqual(floats(before.get(EMBEDDING)!))
    const expected = floats({
      ...after.get('model.q_proj.weight')!,
      bytes: expectedWeight(before.get('model.q_proj.weight')!, [[lora, 'model.q_proj']], 'fp32'),
    })
    floats(after.get('model.q_proj.weight')!).forEach((value, i) => {
      expect(value).toBeCloseTo(expected[i], 5)
    })
    const index = JSON.parse(new TextDecoder().decode(out.files.get('model.safetensors.index.json')))
    expect(index.metadata.total_size).toBe(4 * (32 * 16 + 24 * 16 + 16))
    expect(JSON.parse(new TextDecoder().decode(out.files.get('config.json'))).torch_dtype).toBe('float32')
  })

  it('distributes tensors over shards of a size, and over one', async () => {
    const from = await base(TIED)
    const { out, after, before } = await run(from, lora, { maxShardBytes: 1100 })
    const files = [
      'model-00001-of-00002.safetensors',
      'model-00002-of-00002.safetensors',
      'model.safetensors.index.json',
    ]
    expect([...out.files.keys()].filter((name) => name.startsWith('model'))).toEqual(files)
    expect(after.get(EMBEDDING)).toEqual(before.get(EMBEDDING))
    const { metadata } = await parseSafetensorsHeader(await out.open(files[1]))
    expect(metadata).toEqual({ format: 'pt' })
    const again = await run(out, adapter({ 'model.q_proj': [24, 16] }), { maxShardBytes: 1e9 })
    expect([...again.out.files.keys()].filter((name) => name.startsWith('model'))).toEqual(['model.safetensors'])
  })
})

describe('streaming', () => {
  it('reads each byte of the base once, in pieces of at most a chunk', async () => {
    // Rows longer than a chunk, single rows, and tails of every kind.
    const from = await base([
      ['wide_proj.weight', 'bf16', [2, CHUNK_BYTES / 2 + 13]],
      ['tall_proj.weight', 'fp32', [CHUNK_BYTES / 4 / 8 + 5, 9]],
      ['copied.weight', 'U8', [3 * CHUNK_BYTES + 1]],
    ])
    const lora = adapter({ wide_proj: [2, CHUNK_BYTES / 2 + 13], tall_proj: [CHUNK_BYTES / 4 / 8 + 5, 9] }, { rank: 1 })
    const reads: [offset: number, byteLength: number][] = []
    const open = from.open.bind(from)
    from.open = async (path) => {
      const source: ByteSource = await open(path)
      if (path !== 'model.safetensors') return source
      return {
        name: source.name,
        byteLength: source.byteLength,
        close: () => source.close(),
        read: (offset, byteLength) => {
          reads.push([offset, byteLength])
          return source.read(offset, byteLength)
        },
      }
    }
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(from, lora, out)
    const total = from.files.get('model.safetensors')!.length
    // The first two reads are of the header.
    const data = reads.slice(2).sort(([a], [b]) => a - b)
    let end = 0
    for (const [offset, byteLength] of data) {
      expect(offset).toBe(end)
      expect(byteLength).toBeLessThanOrEqual(CHUNK_BYTES)
      end += byteLength
    }
    expect(end).toBe(total)
    expect(out.files.get('model.safetensors')!.length).toBe(total)
    const [before, after] = [await readTensors(from), await readTensors(out)]
    const wide = expectedWeight(before.get('wide_proj.weight')!, [[lora, 'wide_proj']])
    expect(
      compareStored(after.get('wide_proj.weight')!.bytes, wide, 'bf16').differing / (wide.length / 2),
    ).toBeLessThan(1e-3)
  })
})
