// GGUF adapters against those of llama.cpp's own converter, back to PEFT, and what is refused. That llama.cpp gives
// PEFT's logits with them is checked by scripts/golden/check_gguf.mjs.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { MemoryDirectory, MemorySource } from '../../src/base/bytes.js'
import { type GgufFile, parseGguf, readGgufTensor } from '../../src/formats/gguf/gguf.js'
import { usePlatform } from '../../src/index/platform/platform.js'
import { convertAdapter, resize } from '../../src/index/tools.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import type { LoraConfigInput } from '../../src/lora/config.js'
import { nodePlatform } from '../../src/node/platform.js'
import { loadAdapter, saveAdapter } from '../../src/peft/adapter-folder.js'
import { goldenNames, goldenPath } from '../golden.js'
import { changes, distance } from '../tools/adapters.js'

usePlatform(nodePlatform)

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
      const [got, expected] = [await parsed((await written(name)).bytes), await parsed(bytesOf(name, 'expected.gguf'))]
      expect([...got.tensors.keys()].sort()).toEqual([...expected.tensors.keys()].sort())
      for (const [key, tensor] of expected.tensors) {
        const own = got.tensors.get(key)!
        expect([own.shape, own.type.name], key).toEqual([tensor.shape, 'F32'])
        expect(await readGgufTensor(got, own)).toEqual(await readGgufTensor(expected, tensor))
      }
      for (const key of ['general.architecture', 'general.type', 'adapter.type', 'adapter.lora.alpha']) {
        expect(got.metadata.get(key), key).toEqual(expected.metadata.get(key))
      }
    },
  )

  it('has llama.cpp’s bits in q8_0, and f16 where rows fill no block', async () => {
    const { bytes, notes } = await written('mistral', 'q8_0')
    const [got, expected] = [await parsed(bytes), await parsed(bytesOf('mistral', 'q8_0.gguf'))]
    for (const [key, { type, offset, byteLength }] of expected.tensors) {
      const own = got.tensors.get(key)!
      expect(own.type.name, key).toBe(type.name)
      expect(await got.source.read(own.offset, byteLength)).toEqual(await expected.source.read(offset, byteLength))
    }
    expect(notes).toEqual([expect.stringMatching(/rows that no blocks of 32 fill, and are f16/)])
  })

  it.each(names)('keep the change there and back: %s', async (name) => {
    const folder = goldenPath('gguf', name)
    const { bytes } = await written(name)
    const out = new MemoryDirectory()
    const file = new MemoryDirectory({ 'any-name.gguf': bytes })
    const report = await convertAdapter(file, { to: 'peft', base: folder, out })
    expect(report.from).toBe('gguf')
    const [got, wanted] = [changes(await loadAdapter(out)), changes(await loadAdapter(new NodeDirectory(folder)))]
    // Stacked experts come back one by one, with the halves of gate_up_proj apart.
    for (const [key, { data }] of wanted) {
      if (!key.includes('experts')) expect(distance(got.get(key)!.data, data), key).toBeLessThan(1e-6)
    }
    if (name !== 'qwen3-moe') expect([...got.keys()].sort()).toEqual([...wanted.keys()].sort())
    else {
      const stack = wanted.get('model.layers.1.mlp.experts.gate_up_proj')!
      const one = got.get('model.layers.1.mlp.experts.2.up_proj')!
      // Stored as (E, 2·24, 32), adapted as PEFT has it: Δ_e is that of expert 2, rows 24 to 47.
      const all = [stack.data, turned(stack.data, 4)].map((data) => data.subarray((2 * 48 + 24) * 32, 3 * 48 * 32))
      expect(Math.min(...all.map((data) => distance(one.data, data)))).toBeLessThan(1e-6)
    }
  })

  it('says the scaling with alpha where one number can, else multiplies it into B', async () => {
    const alphaOf = async (name: string) =>
      (await parsed((await written(name)).bytes)).metadata.get('adapter.lora.alpha')
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
      await saveAdapter(adapter, new NodeDirectory(folder))
      const config = { architectures: ['LlamaForCausalLM'], num_attention_heads: 32 }
      const base = new MemoryDirectory({ 'config.json': JSON.stringify(config) })
      const out = join(folder, 'out.gguf')
      await convertAdapter(folder, { to: 'gguf', base, out })
      const file = await parsed(new Uint8Array(readFileSync(out)))
      expect(file.tensors.size).toBe(40)
      for (const part of adapter.parts('linear')) {
        const [, layer, isQ] = /layers\.(\d+)\.(self_attn)?/.exec(part.name)!
        const tensor = `blk.${layer}.${isQ ? 'attn_q' : 'ffn_up'}.weight`
        const [a, b] = ['a', 'b'].map((role) => readGgufTensor(file, file.tensors.get(`${tensor}.lora_${role}`)!))
        expect(Buffer.compare(bytesIn(await a), bytesIn(part.weightA.data as Float32Array)), tensor).toBe(0)
        if (!isQ) expect(Buffer.compare(bytesIn(await b), bytesIn(part.weightB.data as Float32Array)), tensor).toBe(0)
      }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it('takes a GGUF file of the model as the base, and checks shapes against it', async () => {
    const model = await modelGguf('llama')
    const base = new MemoryDirectory({ 'model.gguf': model })
    const out = new MemoryDirectory()
    await convertAdapter(goldenPath('gguf', 'mistral'), { to: 'gguf', base, out })
    expect(out.files.get('adapter.gguf')).toEqual((await written('mistral')).bytes)
    const small = await resize(goldenPath('gguf', 'mistral'), { rank: 1 })
    await convertAdapter(small.adapter, { to: 'gguf', base, out: new MemoryDirectory() })
    const other = new LoraAdapter({ rank: 1, targetModules: ['q_proj'] })
    other.addFactors('model.layers.0.self_attn.q_proj', [[1, 0]], [[1], [2]])
    await expect(convertAdapter(other, { to: 'gguf', base, out: new MemoryDirectory() })).rejects.toThrow(
      /q_proj: does not fit blk.0.attn_q.weight.*\(32, 32\).*\(2, 2\)/,
    )
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
    ).rejects.toThrow(/config.json, or one .gguf file/)
    const qwen = new MemoryDirectory({ 'a.gguf': bytesOf('qwen3', 'expected.gguf') })
    await expect(
      convertAdapter(qwen, { to: 'peft', base: goldenPath('gguf', 'llama'), out: new MemoryDirectory() }),
    ).rejects.toThrow(/another base.*llama.*qwen3/)
  })
})

describe('damaged GGUF files', () => {
  const good = bytesOf('mistral', 'expected.gguf')
  const edited = (edit: (view: DataView, bytes: Uint8Array) => void) => {
    const bytes = good.slice()
    edit(new DataView(bytes.buffer), bytes)
    return parsed(bytes)
  }
  it('are refused wherever they are cut', async () => {
    for (let length = 0; length < good.length; length += 97) {
      await expect(parsed(good.slice(0, length))).rejects.toThrow(/past the end|cut short|not a GGUF/)
    }
  })
  it.each([
    ['2⁶³ tensors', (view: DataView) => view.setBigUint64(8, 2n ** 63n, true), /number of tensors is too large/],
    [
      'tens of millions of tensors',
      (view: DataView) => view.setBigUint64(8, 50_000_000n, true),
      /number of tensors is too large/,
    ],
    [
      '2⁶⁴−1 values',
      (view: DataView) => view.setBigUint64(16, 2n ** 64n - 1n, true),
      /number of metadata values is too large/,
    ],
    ['a text without end', (view: DataView) => view.setBigUint64(24, 2n ** 40n, true), /length of the name.*too large/],
    ['version 9', (view: DataView) => view.setUint32(4, 9, true), /version that is not read/],
    ['big-endian', (view: DataView) => view.setUint32(4, 3, false), /big-endian/],
  ])('are refused: %s', async (_, edit, message) => {
    await expect(edited(edit)).rejects.toThrow(message)
  })
  it('are refused by name if tokens turn the adapter on', async () => {
    const key = 'adapter.alora.invocation_tokens'
    // Its length (u64), the name, a type (u32), and a text of 13 bytes: 64 bytes, so that tensors stay aligned.
    const entry = Buffer.alloc(64)
    entry.writeBigUint64LE(BigInt(key.length))
    entry.write(key, 8)
    entry.writeUint32LE(8, 8 + key.length)
    entry.writeBigUint64LE(13n, 12 + key.length)
    const bytes = Buffer.concat([good.slice(0, 24), entry, good.slice(24)])
    bytes.writeBigUint64LE(bytes.readBigUint64LE(16) + 1n, 16)
    const folder = new MemoryDirectory({ 'adapter.gguf': bytes })
    const read = convertAdapter(folder, { to: 'peft', base: goldenPath('gguf', 'mistral'), out: new MemoryDirectory() })
    await expect(read).rejects.toThrow(/adapter.alora.invocation_tokens: activated LoRA is not implemented/)
  })
  it('are refused when ranges overlap, or a tensor has an absurd size', async () => {
    const at = (text: string) => Buffer.from(good).indexOf(text) + text.length
    const field = at('blk.0.attn_k.weight.lora_b')
    // dimensions (u32), two sizes (u64), type (u32), offset (u64)
    await expect(edited((view) => view.setBigUint64(field + 24, 0n, true))).rejects.toThrow(/overlap|past the end/)
    await expect(edited((view) => view.setBigUint64(field + 24, 7n, true))).rejects.toThrow(/not aligned/)
    await expect(edited((view) => view.setBigUint64(field + 4, 2n ** 62n, true))).rejects.toThrow(/too large/)
    await expect(edited((view) => view.setUint32(field, 9, true))).rejects.toThrow(/too many dimensions/)
    await expect(edited((view) => view.setUint32(field + 20, 99, true))).rejects.toThrow(/unknown type/)
  })
})

function parsed(bytes: Uint8Array): Promise<GgufFile> {
  return parseGguf(new MemorySource(bytes, 'file.gguf'))
}

/** Each of `count` matrices (rows, columns) with its columns as rows, where they were stored the other way round. */
function turned(data: Float64Array, count: number): Float64Array {
  const size = data.length / count
  const [rows, columns] = [32, size / 32]
  return Float64Array.from(data, (_, at) => {
    const [matrix, inside] = [Math.floor(at / size), at % size]
    return data[matrix * size + (inside % rows) * columns + Math.floor(inside / rows)]
  })
}

/** A model with the metadata of llama.cpp's own files, and tensors of the sizes that mistral has. */
async function modelGguf(architecture: string): Promise<Uint8Array> {
  const { writeGguf } = await import('../../src/formats/gguf/gguf.js')
  const out = new MemoryDirectory()
  const sink = await out.create('model.gguf')
  const sizes = {
    attn_q: [32, 32],
    attn_k: [16, 32],
    attn_v: [16, 32],
    attn_output: [32, 32],
    ffn_gate: [48, 32],
    ffn_up: [48, 32],
    ffn_down: [32, 48],
  }
  const tensor = (name: string, shape: number[]) => ({
    name,
    shape,
    dtype: 'fp16' as const,
    bytes: () => new Uint8Array(2 * shape[0] * shape[1]),
  })
  await writeGguf(
    sink,
    new Map<string, string | { u32: number }>([
      ['general.architecture', architecture],
      [`${architecture}.attention.head_count`, { u32: 4 }],
      [`${architecture}.attention.head_count_kv`, { u32: 2 }],
      [`${architecture}.embedding_length`, { u32: 32 }],
    ]),
    [
      tensor('output.weight', [272, 32]),
      ...[0, 1].flatMap((layer) =>
        Object.entries(sizes).map(([name, shape]) => tensor(`blk.${layer}.${name}.weight`, shape)),
      ),
    ],
  )
  await sink.commit()
  return out.files.get('model.gguf')!
}
