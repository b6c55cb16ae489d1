// Vocabularies that were grown or cut before training (add_tokens and resize_token_embeddings): PEFT saves the
// embeddings whole.

import { describe, expect, it } from 'vitest'
import { type LoraAdapter, MemoryDirectory, saveAdapter } from '../../../src/api/node.js'
import { readJson } from '../../../src/core/base/bytes.js'
import { Random } from '../../../src/core/base/random.js'
import { fitOf } from '../../../src/merge/fit.js'
import {
  adapter,
  base,
  compareStored,
  expectedWeight,
  floats,
  mergeCheckpoint,
  normals,
  readTensors,
} from '../toolkit.js'

const [EMBED, HEAD, PROJ] = ['model.embed_tokens', 'lm_head', 'model.layers.0.self_attn.q_proj']

/** Makes an adapter with a layer and whole embeddings of this many rows, as PEFT saves them. */
function grown(rows: number, modules: readonly string[], layers: readonly string[] = [PROJ]): LoraAdapter {
  const shapes = Object.fromEntries(layers.map((name) => [name, name === PROJ ? [16, 16] : [rows, 16]] as const))
  const lora = adapter(shapes as Record<string, [number, number]>)
  for (const [i, module] of modules.entries()) {
    const data = normals(new Random(10 + i, 'grown'), rows * 16)
    lora.addReplacement(`${module}.weight`, { data, shape: [rows, 16] }, { isTrained: false })
  }
  return lora
}

async function untied() {
  const config = { model_type: 'llama', tie_word_embeddings: false, vocab_size: 20 }
  return base(
    [
      [`${EMBED}.weight`, 'fp32', [20, 16]],
      [`${PROJ}.weight`, 'fp32', [16, 16]],
      [`${HEAD}.weight`, 'fp32', [20, 16]],
    ],
    { config },
  )
}

async function tied() {
  const config = { model_type: 'llama', tie_word_embeddings: true, vocab_size: 20 }
  return base(
    [
      [`${EMBED}.weight`, 'fp32', [20, 16]],
      [`${PROJ}.weight`, 'fp32', [16, 16]],
    ],
    { config },
  )
}

describe.each([23, 17])('a vocabulary of 20 that becomes %d', (rows) => {
  it.each<[string, () => Promise<MemoryDirectory>, string[]]>([
    ['untied', untied, [EMBED, HEAD]],
    ['tied, with the embedding', tied, [EMBED]],
    ['tied, with both of its names', tied, [EMBED, HEAD]],
  ])('%s: the result has the rows, and its config.json says so', async (_, make, modules) => {
    const [from, lora, out] = [await make(), grown(rows, modules), new MemoryDirectory()]
    const { changed } = await mergeCheckpoint(from, lora, out)
    const [before, after] = [await readTensors(from), await readTensors(out)]
    expect([...after.keys()].sort()).toEqual([...before.keys()].sort())
    const stored = modules.filter((module) => before.has(`${module}.weight`))
    for (const module of stored) {
      expect(after.get(`${module}.weight`)!.shape).toEqual([rows, 16])
      expect(floats(after.get(`${module}.weight`)!)).toEqual(lora.get(`${module}.weight`, 'replacement')!.weight.data)
    }
    expect(changed).toBe(1 + stored.length)
    const exact = expectedWeight(before.get(`${PROJ}.weight`)!, [[lora, PROJ]])
    const own = after.get(`${PROJ}.weight`)!
    for (const [i, value] of floats({ ...own, bytes: exact }).entries()) expect(floats(own)[i]).toBeCloseTo(value, 5)
    expect(await readJson(out, 'config.json')).toMatchObject({ vocab_size: rows })
    const folder = new MemoryDirectory({}, 'adapter')
    await saveAdapter(lora, folder)
    expect(await fitOf({ directory: from }, folder)).toMatchObject({ fits: true, problems: [] })
  })

  it('a layer on the head is added to the new rows', async () => {
    const [from, lora, out] = [await untied(), grown(rows, [EMBED, HEAD], [PROJ, HEAD]), new MemoryDirectory()]
    await mergeCheckpoint(from, lora, out)
    const own = lora.get(`${HEAD}.weight`, 'replacement')!
    const values = { dtype: own.dtype, shape: own.shape, bytes: own.data }
    const { bytes } = (await readTensors(out)).get(`${HEAD}.weight`)!
    expect(compareStored(bytes, values.bytes, 'fp32').differing).toBeGreaterThan(100)
    const near = floats({ ...values, bytes: expectedWeight(values, [[lora, HEAD]]) })
    for (const [i, value] of floats({ ...values, bytes }).entries()) expect(value).toBeCloseTo(near[i], 5)
  })

  it('without the head of an untied model it is refused, and told what to save', async () => {
    const work = mergeCheckpoint(await untied(), grown(rows, [EMBED]), new MemoryDirectory())
    await expect(work).rejects.toMatchObject({
      code: 'MISMATCH',
      where: 'lm_head.weight',
      hint: expect.stringMatching(/save_embedding_layers/),
    })
  })
})

it('another number of features is no vocabulary', async () => {
  const lora = adapter({ [PROJ]: [16, 16] })
  lora.addReplacement(`${EMBED}.weight`, { data: new Float32Array(20 * 8), shape: [20, 8] }, { isTrained: false })
  await expect(mergeCheckpoint(await tied(), lora, new MemoryDirectory())).rejects.toMatchObject({ code: 'MISMATCH' })
})

it.each(['model.rotary_emb.inv_freq', 'model.layers.0.self_attn.rotary_emb.inv_freq', 'embeddings.position_ids'])(
  'the buffer %s in an adapter is no weight',
  async (name) => {
    const lora = adapter({ [PROJ]: [16, 16] })
    lora.addReplacement(name, { data: Float32Array.of(1, 0.1), shape: [2] })
    const out = new MemoryDirectory()
    expect(await mergeCheckpoint(await untied(), lora, out)).toMatchObject({ changed: 1, added: [] })
    expect((await readTensors(out)).has(name)).toBe(false)
  },
)
