// Sessions on models with several graphs, with branches, and with packed layers give PEFT's logits and texts.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { isAbsolute, join } from 'node:path'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  DataError,
  type Feeds,
  type LoraAdapter,
  loadAdapter,
  loadModel,
  MismatchError,
  type Model,
  merge,
} from '../../src/api/node.js'
import { ModelSession } from '../../src/run/model-session.js'
import { expectedGraphs, firstFeeds, graphsFolder, graphsNumbers, int64, lastRows, worst } from '../several-graphs.js'
import { cases } from '../thorough.js'

const open = (name: string): Promise<Model> =>
  loadModel(isAbsolute(name) ? name : graphsFolder(name), {
    runtime: { module: ort },
  })
const adapterOf = (name: string): Promise<LoraAdapter> => loadAdapter(`${graphsFolder(name)}/golden/adapter`)

/** Returns the decoder's logits of the last two tokens, and the logits of the last token with a cache. */
async function decoded(session: ModelSession<Model>, name: string, adapter: string | null) {
  const ids = expectedGraphs(name).decoderIds!
  const { last_hidden_state } = await session.run(await firstFeeds(name), { graph: 'encoder', adapter })
  const feeds = { encoder_hidden_states: last_hidden_state }
  const whole = await session.run({ ...feeds, input_ids: int64(ids) }, { adapter })
  const { logits: _, ...past } = await session.run({ ...feeds, input_ids: int64(ids.slice(0, -1)) }, { adapter })
  const cache = Object.fromEntries(
    Object.entries(past).map(([key, value]) => [key.replace('present', 'past_key_values'), value]),
  )
  const mask: Feeds = session.inputNames.includes('encoder_attention_mask')
    ? { encoder_attention_mask: int64(Array(last_hidden_state.dims[1]).fill(1)) }
    : {}
  const uses = { use_cache_branch: { type: 'bool' as const, data: Uint8Array.of(1), dims: [1] } }
  const cached = await session.run(
    { ...feeds, ...mask, ...cache, ...uses, input_ids: int64(ids.slice(-1)) },
    { adapter },
  )
  return { whole: lastRows(whole.logits, 2), cached: lastRows(cached.logits, 1) }
}

describe('encoder and decoder', () => {
  it.each(cases(['bart', 't5gemma'], ['t5', 'whisper']))(
    '%s: raw feeds give PEFT’s logits, in both branches',
    async (name) => {
      const model = await open(name)
      const session = await ModelSession.open(model, { adapters: { own: await adapterOf(name) } })
      const numbers = await graphsNumbers(name)
      expect(session.graphs).toEqual(['decoder', 'encoder'])
      for (const [adapter, key] of [
        [null, 'base'],
        ['own', 'adapted'],
      ] as const) {
        const { whole, cached } = await decoded(session, name, adapter)
        expect(worst(whole, numbers.get(key)!)).toBeLessThan(1e-5)
        expect(worst(cached, numbers.get(key)!.slice(-2048))).toBeLessThan(1e-5)
      }
      await session.dispose()
      await model.close()
    },
  )

  it('a replaced norm goes to the graph that has it, as in a merge', async () => {
    const model = await open('t5')
    const adapter = await adapterOf('t5')
    const width = Number(model.config.d_model)
    const data = Float32Array.from({ length: width }, (_, i) => 0.5 + Math.cos(i))
    adapter.addReplacement('encoder.block.0.layer.0.layer_norm.weight', { data, shape: [width] })
    const out = mkdtempSync(join(tmpdir(), 'lowrank-norms-'))
    await merge({ base: graphsFolder('t5'), adapters: adapter, out: join(out, 'merged'), threads: 1 })
    const mergedModel = await open(join(out, 'merged'))
    const [session, merged] = [
      await ModelSession.open(model, { adapters: { adapter } }),
      await ModelSession.open(mergedModel),
    ]
    const [own, expected] = [await decoded(session, 't5', 'adapter'), await decoded(merged, 't5', null)]
    expect(worst(own.whole, expected.whole)).toBeLessThan(1e-5)
    expect(worst(own.cached, expected.cached)).toBeLessThan(1e-5)
    expect(worst(own.whole, (await graphsNumbers('t5')).get('adapted')!)).toBeGreaterThan(0.1)
    for (const opened of [session, merged]) await opened.dispose()
    for (const opened of [model, mergedModel]) await opened.close()
    rmSync(out, { recursive: true })
  })

  it('an adapter is added and removed in all graphs', async () => {
    const model = await open('bart')
    const session = await ModelSession.open(model)
    await session.add('own', await adapterOf('bart'))
    const numbers = await graphsNumbers('bart')
    expect(worst((await decoded(session, 'bart', 'own')).whole, numbers.get('adapted')!)).toBeLessThan(1e-5)
    await session.remove('own')
    await expect(session.run(await firstFeeds('bart'), { graph: 'encoder', adapter: 'own' })).rejects.toThrow(
      MismatchError,
    )
    await session.add('own', await adapterOf('bart'))
    expect(worst((await decoded(session, 'bart', 'own')).whole, numbers.get('adapted')!)).toBeLessThan(1e-5)
    await session.dispose()
    await model.close()
  })

  it('a layer that is in none of the graphs is an error that names them, unless it is left out', async () => {
    const model = await open('t5')
    const adapter = await adapterOf('t5')
    const other = adapter.only(new Set(adapter.names().slice(0, 2)))
    other.addFactors('decoder.pooler', Array(4).fill([1, 2]), [
      [1, 2, 3, 4],
      [1, 2, 3, 4],
    ])
    await expect(ModelSession.open(model, { adapters: { other } })).rejects.toThrow(
      /none of the model's graphs \(decoder_model_merged.onnx, encoder_model.onnx\) has a module for decoder.pooler/,
    )
    const session = await ModelSession.open(model, { adapters: { other }, allowMissing: true })
    expect(session.adapters).toEqual(['other'])
    await session.dispose()
    const foreign = await adapterOf('bart')
    await expect(ModelSession.open(model, { adapters: { foreign }, allowMissing: true })).rejects.toThrow(
      /no module for any of its layers/,
    )
    await model.close()
  })

  it('a graph that is not there', async () => {
    const model = await open('t5')
    const session = await ModelSession.open(model)
    await expect(session.run({}, { graph: 'encoderr' })).rejects.toThrow(
      /no such graph; expected decoder, encoder.*encoder\?/,
    )
    await session.dispose()
    await model.close()
  })
})

describe('texts', () => {
  let [models, sessions]: [Record<string, Model>, Record<string, ModelSession<Model>>] = [{}, {}]
  beforeAll(async () => {
    for (const name of ['t5', 'bart', 't5gemma']) {
      models[name] = await open(name)
      sessions[name] = await ModelSession.open(models[name], { adapters: { own: await adapterOf(name) } })
    }
  })
  afterAll(async () => {
    for (const name of ['t5', 'bart', 't5gemma']) {
      await sessions[name].dispose()
      await models[name].close()
    }
    models = {}
    sessions = {}
  })

  it.each(['t5', 'bart', 't5gemma'])('%s writes PEFT’s tokens, with the adapter and without', async (name) => {
    const { text, baseIds, adaptedIds } = expectedGraphs(name)
    const options = { maxNewTokens: baseIds.length }
    expect((await sessions[name].generate(text, options)).tokenIds).toEqual(baseIds)
    expect((await sessions[name].generate(text, { ...options, adapter: 'own' })).tokenIds).toEqual(adaptedIds)
  })

  it.each(['t5', 'bart', 't5gemma'])(
    '%s writes the same in a batch of prompts of other lengths, an adapter for each',
    async (name) => {
      const { text, baseIds, adaptedIds } = expectedGraphs(name)
      const long = `${text}, and they did eat bread`
      const options = { maxNewTokens: baseIds.length }
      const [one, two, three] = await sessions[name].generate([text, long, text], {
        ...options,
        adapter: ['own', 'own', null],
      })
      const alone = await sessions[name].generate(long, { ...options, adapter: 'own' })
      expect(one.tokenIds).toEqual(adaptedIds)
      expect(two.tokenIds).toEqual(alone.tokenIds)
      expect(three.tokenIds).toEqual(baseIds)
    },
  )

  it.each(cases(['t5gemma'], ['t5', 'bart']))('%s writes the same after a merge', async (name) => {
    const out = mkdtempSync(join(tmpdir(), 'lowrank-texts-'))
    await merge({ base: graphsFolder(name), adapters: await adapterOf(name), out: join(out, 'merged'), threads: 1 })
    const merged = await ModelSession.open(await open(join(out, 'merged')))
    const { text, adaptedIds } = expectedGraphs(name)
    expect((await merged.generate(text, { maxNewTokens: adaptedIds.length })).tokenIds).toEqual(adaptedIds)
    await merged.dispose()
    await merged.model.close()
    rmSync(out, { recursive: true })
  })

  it('takes no chat, no unknown token, and no empty text', async () => {
    await expect(sessions.t5.generate([{ role: 'user', content: 'Hello' }])).rejects.toThrow(/takes no chat/)
    await expect(sessions.t5.generate({ ids: [5, 1_000_000] })).rejects.toThrow(/no token has this id.*got 1000000/)
    await expect(sessions.t5.generate({ ids: [] })).rejects.toThrow(DataError)
  })
})
