// extract: it finds merged adapters again, gives the best adapter of each rank, whether weights are in memory or
// streamed, and names changes that LoRA cannot hold.

import { describe, expect, it } from 'vitest'
import { nodePlatform } from '../../../src/api/node/platform.js'
import { loadAdapter, type Matrix, MemoryDirectory, saveAdapter } from '../../../src/api/node.js'
import { usePlatform } from '../../../src/api/platform/platform.js'
import { extract } from '../../../src/api/tools.js'
import { Random } from '../../../src/core/base/random.js'
import { type StreamedMatrix, streamedSvd } from '../../../src/core/linalg/streamed-svd.js'
import { svd } from '../../../src/core/linalg/svd.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { saveSafetensors } from '../../../src/files/safetensors.js'
import { merge } from '../../../src/merge/merge.js'
import { extractAdapter } from '../../../src/merge/tools/extract.js'
import { goldenPath, tensorsIn } from '../../golden.js'
import { changes, distance } from './adapters.js'

usePlatform(nodePlatform)

type Values = Record<string, { shape: number[]; data: Float32Array }>

async function checkpoint(values: Values, config?: object): Promise<MemoryDirectory> {
  const folder = new MemoryDirectory()
  const tensors = Object.entries(values).map(([name, { shape, data }]) => ({
    name,
    dtype: 'fp32' as const,
    shape,
    data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  }))
  await saveSafetensors(folder, 'model.safetensors', tensors)
  if (config) folder.files.set('config.json', new TextEncoder().encode(JSON.stringify(config)))
  return folder
}

const random = new Random(4, 'extract')
const noise = (shape: number[], scale = 1) => ({
  shape,
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => scale * random.normal()),
})
/** Makes a change with falling singular values. */
const falling = (d: number, k: number) => {
  const { u, vt } = svd({ data: noise([d, k]).data, shape: [d, k] })
  const data = new Float32Array(d * k)
  const p = Math.min(d, k)
  for (let i = 0; i < d; i++)
    for (let j = 0; j < k; j++)
      for (let r = 0; r < p; r++) data[i * k + j] += (u.data[i * p + r] * vt.data[r * k + j]) / (r + 1)
  return { shape: [d, k], data }
}
const plus = ({ shape, data }: { shape: number[]; data: Float32Array }, other: { data: Float32Array }) => ({
  shape,
  data: data.map((value, i) => value + other.data[i]),
})

function model(): { base: Values; changed: Values } {
  const base: Values = {
    'model.embed_tokens.weight': noise([30, 12]),
    'model.layers.0.self_attn.q_proj.weight': noise([16, 12]),
    'model.layers.0.self_attn.q_proj.bias': noise([16]),
    'model.layers.0.mlp.experts.gate_up_proj': noise([3, 10, 12]),
    'model.layers.0.mlp.up_proj.weight': noise([20, 12]),
    'model.layers.0.input_layernorm.weight': noise([12]),
    'lm_head.weight': noise([30, 12]),
  }
  const changed: Values = {
    ...base,
    'model.embed_tokens.weight': plus(base['model.embed_tokens.weight'], falling(30, 12)),
    'model.layers.0.self_attn.q_proj.weight': plus(base['model.layers.0.self_attn.q_proj.weight'], falling(16, 12)),
    'model.layers.0.self_attn.q_proj.bias': noise([16]),
    'model.layers.0.mlp.experts.gate_up_proj': plus(
      base['model.layers.0.mlp.experts.gate_up_proj'],
      noise([3, 10, 12], 0.1),
    ),
    'model.layers.0.input_layernorm.weight': noise([12]),
    'score.weight': noise([2, 12]),
  }
  return { base, changed }
}

describe('extract', () => {
  it('finds the closest change of the rank, and keeps whole what LoRA cannot carry', async () => {
    const { base, changed } = model()
    const result = await extract({ base: await checkpoint(base), fineTuned: await checkpoint(changed), rank: 3 })
    const { adapter, layers, saved, skipped, missing } = result
    const got = changes(adapter)
    for (const name of ['model.embed_tokens', 'model.layers.0.self_attn.q_proj']) {
      const before = base[`${name}.weight`]
      const delta = changed[`${name}.weight`].data.map((value, i) => value - before.data[i])
      const { s } = svd({ data: delta, shape: before.shape as [number, number] })
      const energy = (from: number) => s.subarray(from).reduce((sum, value) => sum + value ** 2, 0)
      const best = Math.sqrt(energy(3) / energy(0))
      const layer = layers.find((one) => one.name === `${name}.weight`)!
      expect(distance(got.get(name)!.data, delta), name).toBeCloseTo(best, 4)
      expect(layer.error).toBeCloseTo(best, 4)
      expect(layer.norm).toBeCloseTo(Math.sqrt(energy(0)), 4)
      expect(layer.relativeChange).toBeCloseTo(Math.sqrt(energy(0)) / Math.hypot(...before.data), 4)
    }
    expect(adapter.get('model.layers.0.mlp.experts.gate_up_proj')).toMatchObject({
      kind: 'parameter',
      experts: 3,
      rank: 3,
    })
    expect(saved.sort()).toEqual([
      'model.layers.0.input_layernorm.weight',
      'model.layers.0.self_attn.q_proj.bias',
      'score.weight',
    ])
    expect([skipped, missing]).toEqual([[], []])
    expect(adapter.config).toMatchObject({
      rank: 3,
      alpha: 3,
      targetModules: ['embed_tokens', 'q_proj'],
      bias: 'lora_only',
    })
    const folder = new MemoryDirectory()
    await saveAdapter(adapter, folder)
    expect((await loadAdapter(folder)).names().sort()).toEqual(adapter.names().sort())
    // The whole change at full rank, merged into the base, gives the fine-tuned model.
    const whole = await extract({ base: await checkpoint(base), fineTuned: await checkpoint(changed), rank: 99 })
    expect(whole.error).toBeLessThan(1e-5)
    const out = new MemoryDirectory()
    // The base has no place for a new head, so a merge would refuse it.
    whole.adapter.remove('score.weight')
    await saveAdapter(whole.adapter, folder)
    await merge({
      base: { directory: await checkpoint(base), file: undefined },
      adapters: [await loadAdapter(folder)],
      out,
    })
    const merged = await tensorsIn(out)
    delete (changed as Partial<Values>)['score.weight']
    for (const [name, { data }] of Object.entries(changed))
      expect(distance(merged.get(name)!.data, data), name).toBeLessThan(1e-5)
  })

  it('streams a tensor that is larger than the budget, with the same result', async () => {
    const base = { 'a.weight': noise([700, 300]) }
    const tuned = { 'a.weight': plus(base['a.weight'], noise([700, 300], 0.1)) }
    const places = async () =>
      [await checkpoint(base), await checkpoint(tuned)].map((directory) => ({ directory, file: undefined }))
    const [kept, streamed] = [
      await extractAdapter(...((await places()) as [never, never]), { rank: 8 }),
      await extractAdapter(...((await places()) as [never, never]), { rank: 8 }, 100),
    ]
    const [one, other] = [changes(kept.adapter).get('a')!, changes(streamed.adapter).get('a')!]
    expect(distance(one.data, other.data)).toBeLessThan(1e-3)
    expect(streamed.error).toBeCloseTo(kept.error, 6)
  })

  it('takes out of a merged model the adapter that was merged', async () => {
    const base = new NodeDirectory(goldenPath('..', '..', 'models', 'union-3m'))
    const adapter = await loadAdapter(goldenPath('peft', 'f32'))
    const out = new MemoryDirectory()
    await merge({ base: { directory: base, file: 'model.safetensors' }, adapters: [adapter], out, outDtype: 'fp32' })
    const { adapter: found, layers, saved } = await extract({ base, fineTuned: out, energy: 0.999 })
    expect(saved).toEqual([])
    const [got, wanted] = [changes(found), changes(adapter)]
    expect([...got.keys()].sort()).toEqual([...wanted.keys()].sort())
    for (const [name, { data }] of wanted) expect(distance(got.get(name)!.data, data), name).toBeLessThan(0.05)
    for (const { rank } of layers) expect(rank).toBeLessThanOrEqual(4)
  })

  it('keeps embeddings as it is asked to, and whole where tokens were added', async () => {
    const { base, changed } = model()
    const of = async (embeddings: 'save' | 'skip', others?: 'skip') =>
      extract({ base: await checkpoint(base), fineTuned: await checkpoint(changed), rank: 2, embeddings, others })
    expect((await of('save')).saved).toContain('model.embed_tokens.weight')
    const skipping = await of('skip', 'skip')
    expect(skipping.skipped).toHaveLength(4)
    expect(skipping.saved).toEqual([])
    const more = { ...changed, 'model.embed_tokens.weight': noise([33, 12]), 'lm_head.weight': noise([33, 12]) }
    const grown = await extract({ base: await checkpoint(base), fineTuned: await checkpoint(more), rank: 2 })
    expect(grown.saved).toEqual(expect.arrayContaining(['model.embed_tokens.weight', 'lm_head.weight']))
    expect(grown.adapter.get('model.embed_tokens.weight', 'replacement')!.shape).toEqual([33, 12])
  })

  it('says that a tied output embedding follows', async () => {
    const { base, changed } = model()
    delete (base as Partial<Values>)['lm_head.weight']
    delete (changed as Partial<Values>)['lm_head.weight']
    const config = { architectures: ['LlamaForCausalLM'], tie_word_embeddings: true }
    const { adapter } = await extract({
      base: await checkpoint(base, config),
      fineTuned: await checkpoint(changed),
      rank: 2,
    })
    expect(adapter.config).toMatchObject({ ensureWeightTying: true, taskType: 'CAUSAL_LM' })
  })

  it('turns the weights of Conv1D round', async () => {
    const base = { 'h.0.attn.c_attn.weight': noise([12, 36]), 'h.0.attn.c_proj.weight': noise([12, 12]) }
    const tuned = {
      'h.0.attn.c_attn.weight': plus(base['h.0.attn.c_attn.weight'], falling(12, 36)),
      'h.0.attn.c_proj.weight': noise([12, 12]),
    }
    const { adapter } = await extract({ base: await checkpoint(base), fineTuned: await checkpoint(tuned), rank: 12 })
    expect(adapter.config.fanInFanOut).toBe(true)
    expect(adapter.layer('h.0.attn.c_attn').shape).toEqual([36, 12])
    const out = new MemoryDirectory()
    await merge({ base: { directory: await checkpoint(base), file: undefined }, adapters: [adapter], out })
    const merged = await tensorsIn(out)
    for (const [name, { data }] of Object.entries(tuned))
      expect(distance(merged.get(name)!.data, data), name).toBeLessThan(1e-5)
  })

  it.each([
    ['the same model', (base: Values) => base, /no tensor.*differs/],
    ['another model', () => ({ 'other.weight': noise([2, 2]) }), /no tensor has the same name.*other.weight/],
    [
      'other shapes',
      (base: Values) => ({ ...base, 'model.layers.0.mlp.up_proj.weight': noise([21, 12]) }),
      /up_proj.weight.*\(20, 12\).*\(21, 12\)/,
    ],
    [
      'another width',
      (base: Values) => ({ ...base, 'lm_head.weight': noise([30, 13]) }),
      /lm_head.weight.*not the same tensor/,
    ],
    [
      'values that are not finite',
      (base: Values) => ({
        ...base,
        'lm_head.weight': { shape: [30, 12], data: new Float32Array(360).fill(Number.NaN) },
      }),
      /lm_head.weight.*not finite/,
    ],
  ])('refuses %s', async (_, tuned, message) => {
    const { base } = model()
    const run = extract({ base: await checkpoint(base), fineTuned: await checkpoint(tuned(base)), rank: 2 })
    await expect(run).rejects.toThrow(message)
  })

  it('tells how far it is, and stops on a signal', async () => {
    const { base, changed } = model()
    const stop = new AbortController()
    const seen: number[] = []
    const run = extract({
      base: await checkpoint(base),
      fineTuned: await checkpoint(changed),
      rank: 2,
      signal: stop.signal,
      on: {
        progress: ({ done, total }) => {
          expect(total).toBe(8)
          if (seen.push(done) === 3) stop.abort()
        },
      },
    })
    await expect(run).rejects.toThrow(/abort/)
    expect(seen).toEqual([1, 2, 3])
  })

  it('needs a rule, and refuses quantized checkpoints', async () => {
    const { base, changed } = model()
    const [one, other] = [
      await checkpoint(base),
      await checkpoint(changed, { quantization_config: { quant_method: 'awq' } }),
    ]
    await expect(extract({ base: one, fineTuned: other } as never)).rejects.toThrow(/rank: missing/)
    await expect(extract({ base: one, fineTuned: other, rank: 1 })).rejects.toThrow(/awq/)
    const codes = async (fill: number) => {
      const folder = new MemoryDirectory()
      const data = new Uint8Array(16).fill(fill)
      await saveSafetensors(folder, 'model.safetensors', [{ name: 'q_proj.weight', dtype: 'I8', shape: [4, 4], data }])
      return folder
    }
    const quantized = { base: await codes(1), fineTuned: await codes(2), rank: 1 }
    await expect(extract(quantized)).rejects.toThrow(/model\.safetensors: q_proj\.weight: .*has no difference/)
  })
})

describe('streamedSvd', () => {
  it.each([
    ['falling', falling(300, 200)],
    ['flat', noise([260, 320])],
  ] as const)('is within a percent of the best error: %s', async (_, { data, shape }) => {
    const matrix = { data, shape: shape as [number, number] }
    const { s } = svd(matrix)
    const energy = (from: number) => s.subarray(from).reduce((sum, value) => sum + value ** 2, 0)
    for (const rank of [4, 32]) {
      const found = await streamedSvd(inMemory(matrix), rank)
      const kept = found.s.reduce((sum, value) => sum + value ** 2, 0)
      expect(Math.sqrt((energy(0) - kept) / energy(rank))).toBeLessThan(1.01)
    }
  })
})

/** Turns a matrix in memory into a streamed matrix. */
function inMemory({ data, shape }: Matrix): StreamedMatrix {
  const own: Matrix = { data: data instanceof Float32Array ? data : Float32Array.from(data), shape }
  let energy = 0
  for (let i = 0; i < own.data.length; i++) energy += own.data[i] * own.data[i]
  return { shape, energy, forEachBlock: async (use) => use(own, 0) }
}
