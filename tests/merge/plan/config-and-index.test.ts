// config.json and the index of a checkpoint after merges that change the type or the shapes of its weights.

import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MemoryDirectory, saveAdapter } from '../../../src/api/node.js'
import { mergeFiles, planFiles, toDisk } from '../node/disk.js'
import { adapter, base, type CheckpointOptions, mergeCheckpoint, readTensors, type TensorSketch } from '../toolkit.js'

const INDEX = 'model.safetensors.index.json'
const SKETCHES: TensorSketch[] = [
  ['model.embed_tokens.weight', 'bf16', [32, 16]],
  ['model.q_proj.weight', 'bf16', [24, 16]],
]
const config = { model_type: 'llama', tie_word_embeddings: true, torch_dtype: 'bfloat16' }
const head = adapter({ lm_head: [32, 16] })

describe('a result without config.json', () => {
  const here = { threads: 1 }
  let folder: string
  beforeEach(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'merge-'))
  })
  afterEach(() => rm(folder, { recursive: true, force: true }))

  /** Makes a base, and a merge whose result is a file or a folder with weights only. */
  async function layOut(own: Record<string, unknown> = config) {
    const from = await toDisk(await base(SKETCHES, { config: own }), path.join(folder, 'base'))
    const file = path.join(from, 'model.safetensors')
    return [
      [file, path.join(folder, 'one.safetensors'), here],
      [file, path.join(folder, 'out'), { ...here, weightsOnly: true }],
      [from, path.join(folder, 'other.safetensors'), here],
    ] as const
  }

  it('has no untied embeddings: loaders would tie them again', async () => {
    for (const [from, out, options] of await layOut()) {
      for (const make of [mergeFiles, planFiles]) {
        await expect(make(from, [head], out, { ...options, tied: 'untie' })).rejects.toMatchObject({
          code: 'MISMATCH',
          what: 'embeddings cannot be untied without a config.json, which must say so',
          hint: "Keep them tied (`tied: 'keep'`), or write a whole folder",
        })
      }
      expect((await mergeFiles(from, [head], out, { ...options, tied: 'keep' })).warnings).toEqual([])
    }
  })

  it('is not what a file as base gives, when the result is a folder', async () => {
    const from = await toDisk(await base(SKETCHES, { config }), path.join(folder, 'base'))
    const out = path.join(folder, 'out')
    const file = path.join(from, 'model.safetensors')
    expect(await mergeFiles(file, [head], out, { ...here, tied: 'untie' })).toMatchObject({ copied: ['config.json'] })
    expect(JSON.parse(await readFile(path.join(out, 'config.json'), 'utf8')).tie_word_embeddings).toBe(false)
  })

  it('is the same over directories', async () => {
    const run = async (options: CheckpointOptions) =>
      mergeCheckpoint(await base(SKETCHES, { config }), head, new MemoryDirectory(), options)
    await expect(run({ weightsOnly: true, tied: 'untie' })).rejects.toMatchObject({ code: 'MISMATCH' })
    expect((await run({ weightsOnly: true, tied: 'keep', outDtype: 'fp32' })).warnings).toEqual([])
    const { warnings } = await run({ tied: 'untie', outDtype: 'fp32', outFile: 'other.safetensors' })
    expect(warnings).toEqual([expect.stringContaining('were one weight')])
  })
})

describe('config.json', () => {
  it('with a text_config that is none is merged all the same', async () => {
    for (const text of [2, 'gemma', [], null, true]) {
      const from = await base(SKETCHES, { config: { ...config, text_config: text } })
      const out = new MemoryDirectory()
      await mergeCheckpoint(from, head, out, { tied: 'untie', outDtype: 'fp32' })
      const written = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
      expect(written).toEqual({ ...config, tie_word_embeddings: false, torch_dtype: 'float32', text_config: text })
    }
  })

  it('keeps the spelling of all that is not changed: to strict loaders 1 is no 1.0', async () => {
    const text =
      '{"model_type": "llama", "initializer_factor": 1.0, "eps": 1e-05,\n "tie_word_embeddings": true, "dtype": "float32",\n' +
      ' "text_config": {"rope_theta": 10000.0, "tie_word_embeddings": true, "dtype": "float32"}, "id": 12345678901234567890}'
    const from = await base([['model.embed_tokens.weight', 'fp32', [32, 16]]])
    from.files.set('config.json', new TextEncoder().encode(text))
    const out = new MemoryDirectory()
    await mergeCheckpoint(from, adapter({ lm_head: [32, 16] }), out, { tied: 'untie', outDtype: 'bf16' })
    const expected = text.replaceAll('true', 'false').replaceAll('float32', 'bfloat16')
    expect(new TextDecoder().decode(out.files.get('config.json'))).toBe(expected)
  })
})

describe('the index', () => {
  const metadata = { format: 'pt', total_parameters: 896, total_size: 1, dtype: 'bfloat16', notes: { a: [1] } }

  async function run(options: CheckpointOptions, sketches = SKETCHES, lora = head) {
    const copies = { 'lm_head.weight': 'model.embed_tokens.weight' }
    const from = await base(sketches, { config, copies, shards: 2 })
    const { weight_map } = JSON.parse(new TextDecoder().decode(from.files.get(INDEX)))
    from.files.set(INDEX, new TextEncoder().encode(JSON.stringify({ metadata, weight_map })))
    const [folder, out] = [new MemoryDirectory(), new MemoryDirectory()]
    await saveAdapter(lora, folder)
    await mergeCheckpoint(from, folder, out, options)
    const total_size = [...(await readTensors(out)).values()].reduce((sum, { bytes }) => sum + bytes.byteLength, 0)
    return { kept: JSON.parse(new TextDecoder().decode(out.files.get(INDEX))).metadata, total_size }
  }

  it('keeps what the base says of the whole when the shards are new', async () => {
    const { kept, total_size } = await run({ tied: 'keep', maxShardBytes: 1000 })
    expect(kept).toEqual({ ...metadata, total_size })
  })

  it('but not the type when it is another one', async () => {
    const { kept, total_size } = await run({ tied: 'keep', outDtype: 'fp32' })
    const { dtype: _, ...others } = metadata
    expect(kept).toEqual({ ...others, total_size })
    expect(total_size).toBe(4 * 896)
  })

  it.each([
    ['stored once', SKETCHES],
    ['both stored', [...SKETCHES, ['lm_head.weight', 'bf16', [32, 16]]] satisfies TensorSketch[]],
  ])('nor the number of parameters when embeddings are untied that were %s', async (_, sketches) => {
    const { kept, total_size } = await run({ tied: 'untie' }, sketches)
    const { total_parameters: __, ...others } = metadata
    expect(kept).toEqual({ ...others, total_size })
  })
})

describe('a config.json as Python and editors write it', () => {
  const texts = {
    'a byte order mark': `\ufeff${JSON.stringify(config)}`,
    'NaN and infinite numbers': JSON.stringify({ ...config, a: 0, b: [0] }).replace(
      '"a":0,"b":[0]',
      '"a":NaN,"b":[-Infinity,Infinity]',
    ),
  }
  it.each(Object.entries(texts))('with %s is read, and written again but for the change', async (_, written) => {
    const from = await base(SKETCHES, { config })
    from.files.set('config.json', new TextEncoder().encode(written))
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(from, head, out, { tied: 'untie' })
    const result = Buffer.from(out.files.get('config.json')!).toString()
    expect(result.replace('"tie_word_embeddings":false', '"tie_word_embeddings":true')).toBe(
      written.replace('\ufeff', ''),
    )
  })
})
