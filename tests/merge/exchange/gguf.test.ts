// GGUF adapters against those of llama.cpp's own converter, and what is refused. That llama.cpp gives
// PEFT's logits with them is checked by scripts/golden/check_gguf.mjs.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import {
  convertAdapter,
  LoraAdapter,
  type LoraConfigInput,
  MemoryDirectory,
  saveAdapter,
} from '../../../src/api/node.js'
import { goldenNames, goldenPath } from '../../golden.js'
import { readGguf } from './readers.js'

const bytesIn = ({ buffer, byteOffset, byteLength }: Float32Array) => new Uint8Array(buffer, byteOffset, byteLength)

const names = goldenNames('gguf')
const bytesOf = (...parts: string[]) => new Uint8Array(readFileSync(goldenPath('gguf', ...parts)))

async function written(name: string, outDtype?: 'fp16' | 'q8_0'): Promise<{ bytes: Uint8Array; notes: string[] }> {
  const out = new MemoryDirectory()
  const folder = goldenPath('gguf', name)
  const { notes } = await convertAdapter(folder, { to: 'gguf', base: folder, out, outDtype })
  return { bytes: out.files.get('adapter.gguf')!, notes }
}

describe('GGUF adapters', () => {
  it.each(names.filter((name) => existsSync(goldenPath('gguf', name, 'expected.gguf'))))(
    'have the tensors of llama.cpp’s converter: %s',
    async (name) => {
      const [got, expected] = [readGguf((await written(name)).bytes), readGguf(bytesOf(name, 'expected.gguf'))]
      expect([...got.tensors.keys()].sort()).toEqual([...expected.tensors.keys()].sort())
      for (const [key, tensor] of expected.tensors) expect(got.tensors.get(key), key).toEqual(tensor)
      for (const key of ['general.architecture', 'general.type', 'adapter.type', 'adapter.lora.alpha']) {
        expect(got.metadata.get(key), key).toEqual(expected.metadata.get(key))
      }
    },
  )

  it('has llama.cpp’s bits in q8_0, and f16 where rows fill no block', async () => {
    const { bytes, notes } = await written('mistral', 'q8_0')
    const [got, expected] = [readGguf(bytes), readGguf(bytesOf('mistral', 'q8_0.gguf'))]
    for (const [key, tensor] of expected.tensors) expect(got.tensors.get(key), key).toEqual(tensor)
    expect(notes).toEqual([expect.stringMatching(/rows that no blocks of 32 fill, and are f16/)])
  })

  it('says the scaling with alpha where one number can, else multiplies it into B', async () => {
    const alphaOf = async (name: string) => readGguf((await written(name)).bytes).metadata.get('adapter.lora.alpha')
    expect(await alphaOf('llama')).toBe(6)
    expect(await alphaOf('llama-rslora')).toBe(12) // 6·√4
    expect(await alphaOf('llama-patterns')).toBe(0)
    expect((await written('llama-patterns')).notes).toEqual([expect.stringContaining('multiplied into B')])
  })

  it('has each tensor’s bytes where several blocks are written, and one tensor is larger than a block', async () => {
    const adapter = new LoraAdapter({ rank: 8, targetModules: 'all-linear' })
    const values = (count: number, first: number) => Float32Array.from({ length: count }, (_, i) => first + (i % 1009))
    const add = (name: string, d: number, k: number) => {
      const [a, b] = [values(8 * k, name.length), values(d * 8, -d)]
      adapter.addFactors(name, { data: a, shape: [8, k] }, { data: b, shape: [d, 8] })
    }
    for (let layer = 0; layer < 10; layer++) {
      add(`model.layers.${layer}.self_attn.q_proj`, 2048, 10_001)
      add(`model.layers.${layer}.mlp.up_proj`, 3003, layer === 4 ? 80_003 : 2048)
    }
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-gguf-'))
    try {
      await saveAdapter(adapter, folder)
      const config = { architectures: ['LlamaForCausalLM'], num_attention_heads: 32 }
      const base = new MemoryDirectory({ 'config.json': JSON.stringify(config) })
      const out = join(folder, 'out.gguf')
      await convertAdapter(folder, { to: 'gguf', base, out })
      const file = readGguf(new Uint8Array(readFileSync(out)))
      expect(file.tensors.size).toBe(40)
      for (const part of adapter.parts('linear')) {
        const [, layer, isQ] = /layers\.(\d+)\.(self_attn)?/.exec(part.name)!
        const tensor = `blk.${layer}.${isQ ? 'attn_q' : 'ffn_up'}.weight`
        const [a, b] = ['a', 'b'].map((role) => file.tensors.get(`${tensor}.lora_${role}`)!.bytes)
        expect(Buffer.compare(a, bytesIn(part.weightA.data as Float32Array)), tensor).toBe(0)
        if (!isQ) expect(Buffer.compare(b, bytesIn(part.weightB.data as Float32Array)), tensor).toBe(0)
      }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  const one = (config: LoraConfigInput, add: (adapter: LoraAdapter) => void) => {
    const adapter = new LoraAdapter({ rank: 1, targetModules: ['q_proj'], ...config })
    add(adapter)
    return adapter
  }
  const NAME = 'model.layers.0.self_attn.q_proj'
  const B32 = Array.from({ length: 32 }, () => [1])
  it.each([
    [
      'DoRA',
      one({ useDora: true }, (a) => a.addFactors(NAME, [[1]], B32, { magnitude: B32.map(() => 1) })),
      /q_proj: a GGUF adapter cannot hold magnitudes of DoRA.*Merge/,
    ],
    [
      'biases',
      one({ loraBias: true }, (a) => a.addFactors(NAME, [[1]], B32, { biasB: B32.map(() => 1) })),
      /cannot hold biases of B/,
    ],
    [
      'new heads',
      one({}, (a) => a.addReplacement('score.weight', { data: new Float32Array(2), shape: [1, 2] })),
      /score.weight.*cannot hold whole tensors/,
    ],
    ['PiSSA', one({ init: 'pissa' }, (a) => a.addFactors(NAME, [[1]], B32)), /pissa.*to-plain/],
    [
      'other modules',
      one({}, (a) => a.addFactors('model.layers.0.x_proj', [[1]], [[1]])),
      /no tensor for this module.*llama/,
    ],
    ['a tied head', one({}, (a) => a.addFactors('lm_head', [[1]], [[1]])), /lm_head.*tie_word_embeddings.*Merge/],
    [
      'a tied embedding',
      one({}, (a) => a.addEmbedding('model.embed_tokens', [[1]], [[1]])),
      /embed_tokens.*output embedding/,
    ],
    ['odd heads', one({}, (a) => a.addFactors(NAME, [[1]], [[1], [2]])), /4 heads of an even size/],
  ])('refuse %s by name, and leave no file', async (_, adapter, message) => {
    const out = new MemoryDirectory()
    const base = goldenPath('gguf', 'llama-rslora')
    await expect(convertAdapter(adapter, { to: 'gguf', base, out })).rejects.toThrow(message)
    expect(out.files.size).toBe(0)
  })

  it('names models that llama.cpp does not have, and needs a base', async () => {
    const base = (model: string) => new MemoryDirectory({ 'config.json': JSON.stringify({ architectures: [model] }) })
    const to = (model: string) =>
      convertAdapter(goldenPath('gguf', 'llama'), { to: 'gguf', base: base(model), out: new MemoryDirectory() })
    await expect(to('LlamaForCausalML')).rejects.toThrow(/no such model.*LlamaForCausalLM/)
    await expect(to('FalconForCausalLM')).rejects.toThrow(/changes the weights of FalconForCausalLM/)
    await expect(to('LlamaForCausalLM')).rejects.toThrow(/num_attention_heads: missing/)
    await expect(
      convertAdapter(goldenPath('gguf', 'llama'), { to: 'gguf', out: new MemoryDirectory() }),
    ).rejects.toThrow(/base: missing/)
    await expect(
      convertAdapter(goldenPath('gguf', 'llama'), {
        to: 'gguf',
        base: new MemoryDirectory(),
        out: new MemoryDirectory(),
      }),
    ).rejects.toThrow(/folder with the model’s config.json/)
  })
})
