// Merges adapters that replace one of two tied embeddings, or some of its rows. With `tied: 'untie'` the output
// embedding becomes a separate weight; with `tied: 'keep'` the shared weight changes.

import { describe, expect, it } from 'vitest'
import {
  type FloatArray,
  type LoraAdapter,
  MemoryDirectory,
  saveAdapter,
  type TiedPolicy,
} from '../../../src/api/node.js'
import { encodeFloats } from '../../../src/core/base/dtype.js'
import { Random } from '../../../src/core/base/random.js'
import { fitOf } from '../../../src/merge/fit.js'
import { adapter, base, floats, mergeCheckpoint, normals, readTensors, type TensorSketch } from '../toolkit.js'

const EMBEDDING = 'model.embed_tokens.weight'
const HEAD = 'lm_head.weight'
const SKETCHES: TensorSketch[] = [
  [EMBEDDING, 'bf16', [32, 16]],
  ['model.q_proj.weight', 'bf16', [24, 16]],
]
const STORED: TensorSketch[] = [...SKETCHES, [HEAD, 'bf16', [32, 16]]]
const config = { tie_word_embeddings: true, model_type: 'llama' }

const VALUES = normals(new Random(9, 'values'), 32 * 16)
const stored = (values: Float32Array, shape: readonly number[]) => {
  return { dtype: 'bf16' as const, shape, data: encodeFloats(values, 'bf16') }
}
const VALUES_BYTES = stored(VALUES, [32, 16]).data

/** Makes an adapter for q_proj that also contains whole tensors. */
function replacing(...names: string[]): LoraAdapter {
  const lora = adapter({ 'model.q_proj': [24, 16] })
  for (const name of names) {
    lora.addReplacement(name, stored(VALUES, [32, 16]))
  }
  return lora
}

/** Written into the configs of the adapters below, so that their folders can be read again. */
const trainableTokenIndices = { 'model.embed_tokens': [3, 30], lm_head: [30, 4] }

/** Makes an adapter that contains rows 3 and 30. */
function withRows(lora = adapter({ 'model.q_proj': [24, 16] }, { trainableTokenIndices })): LoraAdapter {
  lora.addTokenRows('model.embed_tokens', [3, 30], stored(VALUES.subarray(0, 32), [2, 16]))
  return lora
}

async function run(sketches: readonly TensorSketch[], lora: LoraAdapter, tied?: TiedPolicy, model_type = 'llama') {
  const copies = { [HEAD]: EMBEDDING, 'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight' }
  const settings = { ...config, model_type }
  const [from, out] = [await base(sketches, { config: settings, copies }), new MemoryDirectory()]
  await mergeCheckpoint(from, lora, out, { tied })
  const written = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
  return { before: await readTensors(from), after: await readTensors(out), isTied: written.tie_word_embeddings }
}

function expectRows(after: FloatArray, before: FloatArray): void {
  const expected = before.slice()
  const rows = floats({ ...stored(VALUES.subarray(0, 32), [2, 16]), bytes: VALUES_BYTES.slice(0, 64) })
  expected.set(rows.subarray(0, 16), 3 * 16)
  expected.set(rows.subarray(16), 30 * 16)
  expect(after).toEqual(expected)
}

describe('untie', () => {
  it.each([
    [
      'bert',
      'bert.embeddings.word_embeddings',
      'cls.predictions.transform.dense',
      'cls.predictions.decoder',
      'cls.predictions.bias',
    ],
    ['albert', 'albert.embeddings.word_embeddings', 'predictions.dense', 'predictions.decoder', 'predictions.bias'],
    ['roberta', 'roberta.embeddings.word_embeddings', 'lm_head.dense', 'lm_head.decoder', 'lm_head.bias'],
    ['distilbert', 'distilbert.embeddings.word_embeddings', 'vocab_transform', 'vocab_projector', undefined],
    ['electra', 'electra.embeddings.word_embeddings', 'generator_predictions.dense', 'generator_lm_head', undefined],
    ['gpt_neox', 'gpt_neox.embed_in', 'gpt_neox.final_layer_norm', 'embed_out', undefined],
    ['bloom', 'transformer.word_embeddings', 'transformer.ln_f', 'lm_head', undefined],
  ])(
    '%s: loaders find the output embedding, and a bias that was tied with it',
    async (type, embedding, beside, head, bias) => {
      const biases = bias === undefined ? [`${head}.bias`] : [bias]
      const own: TensorSketch[] = [
        [`${embedding}.weight`, 'bf16', [32, 16]],
        [`${beside}.weight`, 'bf16', [16]],
        ...biases.map((name): TensorSketch => [name, 'bf16', [32]]),
      ]
      const changed = adapter({})
      changed.addEmbedding(
        embedding,
        { data: VALUES.slice(0, 4 * 32), shape: [4, 32] },
        { data: VALUES.slice(0, 16 * 4), shape: [16, 4] },
      )
      for (const lora of [changed, adapter({ [head]: [32, 16] })]) {
        const { before, after } = await run(own, lora, 'untie', type)
        const added = [...after.keys()].filter((name) => !before.has(name))
        expect(added.sort()).toEqual([...(bias === undefined ? [] : [`${head}.bias`]), `${head}.weight`])
        const weights = [embedding, head].map((name) => after.get(`${name}.weight`)!.bytes)
        const kept = lora === changed ? 1 : 0
        expect(weights[kept]).toEqual(before.get(`${embedding}.weight`)!.bytes)
        expect(weights[1 - kept]).not.toEqual(weights[kept])
        if (bias !== undefined) expect(after.get(`${head}.bias`)).toEqual(before.get(bias))
      }
      if (bias === undefined) return
      const replaced = stored(VALUES.subarray(0, 32), [32])
      changed.addReplacement(bias, replaced)
      const { after } = await run(own, changed, 'untie', type)
      for (const name of [bias, `${head}.bias`]) expect(after.get(name)!.bytes).toEqual(replaced.data)
    },
  )
})

describe.each([
  ['of which one is stored', SKETCHES],
  ['that are both stored', STORED],
])('tied embeddings %s', (_, sketches) => {
  it.each([EMBEDDING, HEAD])('keep: both uses get %s', async (name) => {
    const { before, after, isTied } = await run(sketches, replacing(name), 'keep')
    expect([...after.keys()].sort()).toEqual([...before.keys()].sort())
    expect(after.get(EMBEDDING)!.bytes).toEqual(VALUES_BYTES)
    if (after.has(HEAD)) expect(after.get(HEAD)!.bytes).toEqual(VALUES_BYTES)
    expect(isTied).toBe(true)
  })

  it.each([[[EMBEDDING]], [[HEAD]], [[EMBEDDING, HEAD]]])(
    'fit, and a note says what becomes of the tie: %j',
    async (names) => {
      const folder = new MemoryDirectory()
      await saveAdapter(replacing(...names), folder)
      const report = await fitOf({ directory: await base(sketches, { config, copies: { [HEAD]: EMBEDDING } }) }, folder)
      expect(report).toMatchObject({ fits: true, problems: [], notes: [expect.stringMatching(/were one weight/)] })
      const places = report.parts.filter(({ name }) => names.includes(name)).map(({ tensor }) => tensor)
      expect(places.sort()).toEqual(names.map((name) => (sketches === STORED ? name : EMBEDDING)).sort())
    },
  )

  it('rows fit, and leave the tie', async () => {
    const folder = new MemoryDirectory()
    await saveAdapter(withRows(), folder)
    const report = await fitOf({ directory: await base(sketches, { config, copies: { [HEAD]: EMBEDDING } }) }, folder)
    expect(report).toMatchObject({ fits: true, notes: [] })
    expect(report.parts.map(({ name }) => name)).toContain(EMBEDDING)
  })

  it('untie: the head is replaced alone', async () => {
    const { before, after, isTied } = await run(sketches, replacing(HEAD), 'untie')
    expect(after.get(HEAD)).toMatchObject({ dtype: 'bf16', shape: [32, 16], bytes: VALUES_BYTES })
    expect(after.get(EMBEDDING)).toEqual(before.get(EMBEDDING))
    expect(isTied).toBe(false)
  })

  it('untie: the embedding is replaced alone, and the head gets what both were', async () => {
    const { before, after, isTied } = await run(sketches, replacing(EMBEDDING), 'untie')
    expect(after.get(EMBEDDING)!.bytes).toEqual(VALUES_BYTES)
    expect(after.get(HEAD)!.bytes).toEqual(before.get(before.has(HEAD) ? HEAD : EMBEDDING)!.bytes)
    expect(isTied).toBe(false)
  })

  it('untie: each gets its own where both are replaced; keep has no place for two', async () => {
    const lora = replacing(HEAD, EMBEDDING)
    const other = VALUES.map((value) => value + 1)
    lora.remove(HEAD)
    lora.addReplacement(HEAD, stored(other, [32, 16]))
    const { after } = await run(sketches, lora, 'untie')
    expect(after.get(EMBEDDING)!.bytes).toEqual(VALUES_BYTES)
    expect(after.get(HEAD)!.bytes).toEqual(stored(other, [32, 16]).data)
    await expect(run(sketches, lora, 'keep')).rejects.toMatchObject({ code: 'UNSUPPORTED' })
  })

  it.each<TiedPolicy>(['keep', 'untie'])('rows are for both uses and untie nothing: %s', async (tied) => {
    const { before, after, isTied } = await run(sketches, withRows(), tied)
    expect([...after.keys()].sort()).toEqual([...before.keys()].sort())
    for (const name of [EMBEDDING, HEAD]) {
      if (before.has(name)) expectRows(floats(after.get(name)!), floats(before.get(name)!))
    }
    expect(isTied).toBe(true)
  })

  describe('rows of the head alone, or beside others of the embedding', () => {
    const withHeadRows = (lora = adapter({ 'model.q_proj': [24, 16] }, { trainableTokenIndices })) => {
      lora.addTokenRows('lm_head', [30, 4], stored(VALUES.subarray(32, 64), [2, 16]))
      return lora
    }
    const headRows = floats({ ...stored(VALUES.subarray(32, 64), [2, 16]), bytes: VALUES_BYTES.slice(64, 128) })
    const replaced = (before: FloatArray) => {
      const expected = before.slice()
      expected.set(headRows.subarray(0, 16), 30 * 16)
      expected.set(headRows.subarray(16), 4 * 16)
      return expected
    }

    it('untie, and a note says so', async () => {
      for (const lora of [withHeadRows(), withRows(withHeadRows()), withHeadRows(withRows())]) {
        const folder = new MemoryDirectory()
        await saveAdapter(lora, folder)
        const report = await fitOf(
          { directory: await base(sketches, { config, copies: { [HEAD]: EMBEDDING } }) },
          folder,
        )
        expect(report).toMatchObject({ fits: true, notes: [expect.stringMatching(/were one weight/)] })
      }
    })

    it('untie: each use gets its own', async () => {
      const { before, after, isTied } = await run(sketches, withRows(withHeadRows()), 'untie')
      expectRows(floats(after.get(EMBEDDING)!), floats(before.get(EMBEDDING)!))
      const head = floats(before.get(before.has(HEAD) ? HEAD : EMBEDDING)!)
      expect(floats(after.get(HEAD)!)).toEqual(replaced(head))
      expect(isTied).toBe(false)
      const alone = await run(sketches, withHeadRows(), 'untie')
      expect(alone.after.get(EMBEDDING)).toEqual(before.get(EMBEDDING))
      expect(floats(alone.after.get(HEAD)!)).toEqual(replaced(head))
    })

    it('keep: both uses get them, and there is no place for two', async () => {
      const { before, after, isTied } = await run(sketches, withHeadRows(), 'keep')
      expect([...after.keys()].sort()).toEqual([...before.keys()].sort())
      for (const name of [EMBEDDING, HEAD]) {
        if (before.has(name)) expect(floats(after.get(name)!)).toEqual(replaced(floats(before.get(name)!)))
      }
      expect(isTied).toBe(true)
      await expect(run(sketches, withRows(withHeadRows()), 'keep')).rejects.toMatchObject({ code: 'UNSUPPORTED' })
    })
  })

  it('rows and layers of a head that has another name than most', async () => {
    const [embedding, head] = ['bert.embeddings.word_embeddings', 'cls.predictions.decoder']
    const renamed = sketches.map(([name, ...rest]): TensorSketch => {
      return [name === EMBEDDING ? `${embedding}.weight` : name === HEAD ? `${head}.weight` : name, ...rest]
    })
    const rows = adapter({ 'model.q_proj': [24, 16] })
    rows.addTokenRows(embedding, [3, 30], stored(VALUES.subarray(0, 32), [2, 16]))
    rows.addTokenRows(head, [3, 1], stored(VALUES.subarray(0, 32), [2, 16]))
    const layers = adapter({ [head]: [32, 16] })
    layers.addEmbedding(
      embedding,
      { data: VALUES.slice(0, 4 * 32), shape: [4, 32] },
      { data: VALUES.slice(0, 16 * 4), shape: [16, 4] },
    )
    for (const lora of [rows, layers]) {
      const { before, after } = await run(renamed, lora, 'untie', 'bert')
      for (const name of [embedding, head]) {
        expect(after.get(`${name}.weight`)).not.toEqual(
          before.get(`${name}.weight`) ?? before.get(`${embedding}.weight`),
        )
      }
    }
  })

  it('rows are refused beside another change of the head', async () => {
    const both = run(sketches, withRows(replacing(HEAD)), 'untie')
    await expect(both).rejects.toMatchObject({ code: 'UNSUPPORTED', where: HEAD })
    const layered = withRows(adapter({ lm_head: [32, 16] }))
    await expect(run(sketches, layered, 'untie')).rejects.toMatchObject({ code: 'UNSUPPORTED', where: HEAD })
  })
})
