import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  type Feeds,
  LoraAdapter,
  loadAdapter,
  MismatchError,
  type Model,
  NumericError,
  StateError,
  UnsupportedError,
} from '../../src/api/node.js'
import { readJson } from '../../src/core/base/bytes.js'
import { sessionModel } from '../../src/model/session-model.js'
import { runtimeOf } from '../../src/onnx/runtime/onnxruntime.js'
import { ModelSession } from '../../src/run/model-session.js'
import { cases } from '../thorough.js'
import {
  directoryOf,
  feedsOf,
  makeAdapter,
  maxDifference,
  messageHost,
  oneThread,
  openModel,
  recordingRuntime,
  rowOf,
} from './models.js'

const UNION = 'models/union-3m'
const ROWS = [
  [0, 54, 260, 1356, 270, 262],
  [0, 43, 80, 262, 1833, 1528],
]

let union: Model
beforeAll(async () => {
  union = await openModel(UNION)
})
afterAll(() => union.close())

/** Returns the outputs of the plain model in a separate session. */
async function plainRun(model: Model, feeds: Feeds) {
  const session = await runtimeOf(oneThread).createSession(await sessionModel(model.onnx, model.onnx.proto))
  try {
    return await session.run(feeds)
  } finally {
    await session.dispose()
  }
}

const everyLinear = /_proj$|c_attn$|c_fc$|c_proj$|lm_head$/

describe('without an adapter', () => {
  it.each([
    UNION,
    ...cases(
      ['llama-genai', 'llama-dynamo', 'gpt2-optimum', 'merged-if'],
      ['llama-optimum', 'llama-genai-rotary', 'qwen2-optimum'],
    ).map((name) => `tests/golden/models/${name}`),
    'tests/golden/models/llama-fp16',
    'tests/golden/models/llama-q4',
  ])('%s: outputs equal the base’s, an adapter’s differ', async (path) => {
    const model = await openModel(path)
    const feeds = feedsOf(model, ROWS)
    const base = await plainRun(model, feeds)
    const session = await ModelSession.open(model, { adapters: { a: makeAdapter(model, everyLinear) } })
    const idle = await session.run(feeds)
    expect(Object.keys(idle).sort()).toEqual(Object.keys(base).sort())
    for (const name in base) expect(maxDifference(idle[name], base[name])).toBeLessThanOrEqual(5e-5)
    const adapted = await session.run(feeds, { adapter: 'a', outputNames: ['logits'] })
    expect(Object.keys(adapted)).toEqual(['logits'])
    expect(maxDifference(adapted.logits, base.logits)).toBeGreaterThan(0.1)
    await session.dispose()
    await model.close()
  })
})

interface Expected {
  inputIds: number[]
  logitIds: number[]
  logits: number[]
}

describe('adapters that PEFT wrote', () => {
  const cases = ['f32', 'f16', 'bf16', 'rslora', 'patterns', 'patterns-rslora', 'patterns-order']
  const all = [...cases, 'regex', 'layers', 'high-rank']

  it('give PEFT’s logits, all in one session, in any order', async () => {
    const adapters: Record<string, LoraAdapter> = {}
    const expected: Record<string, { prompts: Expected[]; base: Expected[] }> = {}
    for (const name of all) {
      const folder = directoryOf(`tests/golden/peft/${name}`)
      adapters[name] = await loadAdapter(folder)
      expected[name] = (await readJson(folder, 'expected.json')) as never
    }
    const session = await ModelSession.open(union, { adapters })
    const check = async (adapter: string | undefined, { inputIds, logitIds, logits }: Expected) => {
      const output = await session.run(feedsOf(union, [inputIds]), { adapter })
      const row = rowOf(output.logits)
      const error = maxDifference(
        logitIds.map((id) => row[id]),
        logits,
      )
      expect(error, adapter).toBeLessThan(1e-4)
    }
    for (const name of [...all, ...all.toReversed()]) {
      for (const prompt of expected[name].prompts) await check(name, prompt)
      await check(undefined, expected[name].base[0])
    }
    await session.dispose()
  })

  it.each([
    ...['llama-optimum', 'llama-genai', 'llama-genai-rotary', 'llama-dynamo', 'qwen2-optimum', 'gpt2-optimum'],
    ...['qwen3-genai', 'phi3-genai'],
    'merged-if',
  ])('give PEFT’s logits on %s', async (name) => {
    const path = `tests/golden/models/${name}`
    const model = await openModel(path)
    const golden = (await readJson(directoryOf(path), 'golden/golden.json')) as Record<'base' | 'adapted', Expected>
    const adapter = await loadAdapter(directoryOf(`${path}/golden/adapter-init`))
    const session = await ModelSession.open(model, { adapters: { adapter } })
    for (const [key, choice] of [['base'], ['adapted', 'adapter']] as const) {
      const { inputIds, logitIds, logits } = golden[key]
      const row = rowOf((await session.run(feedsOf(model, [inputIds]), { adapter: choice })).logits)
      expect(
        maxDifference(
          logitIds.map((id) => row[id]),
          logits,
        ),
      ).toBeLessThan(1e-4)
    }
    await session.dispose()
    await model.close()
  })
})

describe('adding and removing', () => {
  it('adapters of other modules and ranks live side by side', async () => {
    const q = makeAdapter(union, /layers\.0\.self_attn\.q_proj$/, { seed: 1, rank: 2 })
    const mlp = makeAdapter(union, /mlp\.(up|down)_proj$/, { seed: 2, rank: 5 })
    const feeds = feedsOf(union, ROWS)
    const alone = async (adapter: LoraAdapter) => {
      const session = await ModelSession.open(union, { adapters: { adapter } })
      const { logits } = await session.run(feeds, { adapter: 'adapter' })
      await session.dispose()
      return logits
    }
    const session = await ModelSession.open(union)
    await session.add('q', q)
    await session.add('mlp', mlp)
    expect(session.adapters).toEqual(['q', 'mlp'])
    expect(maxDifference((await session.run(feeds, { adapter: 'q' })).logits, await alone(q))).toBeLessThan(5e-5)
    expect(maxDifference((await session.run(feeds, { adapter: 'mlp' })).logits, await alone(mlp))).toBeLessThan(5e-5)
    await session.remove('q')
    expect(session.adapters).toEqual(['mlp'])
    await expect(session.run(feeds, { adapter: 'q' })).rejects.toThrow(MismatchError)
    await session.add('q', mlp)
    const [again, first] = [await session.run(feeds, { adapter: 'q' }), await session.run(feeds, { adapter: 'mlp' })]
    expect(maxDifference(again.logits, first.logits)).toBe(0)
    await session.dispose()
  })

  it('names inputs and outputs of the model alone', async () => {
    const session = await ModelSession.open(union, { adapters: { q: makeAdapter(union, /q_proj$/) } })
    const cache = Array.from({ length: 6 }, (_, layer) => [`${layer}.key`, `${layer}.value`]).flat()
    const past = cache.map((name) => `past_key_values.${name}`)
    expect(session.inputNames).toEqual(['input_ids', 'attention_mask', 'position_ids', ...past])
    expect(session.outputNames).toEqual(['logits', ...cache.map((name) => `present.${name}`)])
    await session.dispose()
  })

  it('the adapter stays the caller’s: later edits do not reach the session, its arrays stay usable', async () => {
    const adapter = makeAdapter(union, /q_proj$/)
    const session = await ModelSession.open(union, { adapters: { adapter } })
    const feeds = feedsOf(union, ROWS)
    const before = await session.run(feeds, { adapter: 'adapter' })
    for (const layer of adapter.parts('linear')) layer.weightB.data.fill(0)
    const after = await session.run(feeds, { adapter: 'adapter' })
    expect(maxDifference(before.logits, after.logits)).toBe(0)
    await session.dispose()
  })

  it('a module under another name is found through the map', async () => {
    const adapter = new LoraAdapter({ rank: 1 })
    adapter.addFactors(
      'mine',
      [new Array(192).fill(0.1)],
      Array.from({ length: 64 }, () => [0.5]),
    )
    const modules = { mine: '/model/layers.2/self_attn/v_proj/MatMul' }
    const same = new LoraAdapter({ rank: 1 })
    same.addFactors('model.layers.2.self_attn.v_proj', adapter.layer('mine').weightA, adapter.layer('mine').weightB)
    const feeds = feedsOf(union, ROWS)
    const mapped = await ModelSession.open(union, { adapters: { adapter }, modules })
    const named = await ModelSession.open(union, { adapters: { same } })
    const [a, b] = [await mapped.run(feeds, { adapter: 'adapter' }), await named.run(feeds, { adapter: 'same' })]
    expect(maxDifference(a.logits, b.logits)).toBe(0)
    await mapped.dispose()
    await named.dispose()
  })
})

it('a module may have any name, as one that every object has', async () => {
  const [name, other] = ['constructor', 'toString']
  const adapterOf = (module: string) => {
    const adapter = new LoraAdapter({ rank: 1 })
    adapter.addFactors(
      module,
      [new Array(192).fill(0.1)],
      Array.from({ length: 64 }, () => [0.5]),
    )
    return adapter
  }
  const modules = {
    [name]: '/model/layers.2/self_attn/v_proj/MatMul',
    [other]: '/model/layers.3/self_attn/v_proj/MatMul',
  }
  const session = await ModelSession.open(union, {
    adapters: { a: adapterOf(name), b: adapterOf(other) },
    modules,
  })
  const plain = await ModelSession.open(union, { adapters: { a: adapterOf('model.layers.2.self_attn.v_proj') } })
  const [got, wanted] = [session, plain].map((opened) => opened.run(feedsOf(union, ROWS), { adapter: 'a' }))
  expect(maxDifference((await got).logits, (await wanted).logits)).toBe(0)
  await session.dispose()
  await plain.dispose()
})

describe('what does not fit', () => {
  const layer = (name: string, d: number, k: number, value = 0.1) => {
    const adapter = new LoraAdapter({ rank: 1 })
    adapter.addFactors(
      name,
      [new Array(k).fill(value)],
      Array.from({ length: d }, () => [value]),
    )
    return adapter
  }

  it.each<[string, LoraAdapter, new (...args: never[]) => Error, RegExp]>([
    [
      'another shape',
      layer('model.layers.3.self_attn.q_proj', 256, 192),
      MismatchError,
      /^model\.layers\.3\.self_attn\.q_proj: .*expected a weight of \(192, 192\).*got \(256, 192\)/,
    ],
    [
      'an unknown module',
      layer('model.layers.3.self_attn.qq_proj', 192, 192),
      MismatchError,
      /no module for model\.layers\.3\.self_attn\.qq_proj.*model\.layers\.3\.self_attn\.q_proj/,
    ],
    ['no layers', new LoraAdapter(), MismatchError, /it has no layers/],
    [
      'values that are not finite',
      layer('model.layers.3.self_attn.q_proj', 192, 192, Number.NaN),
      NumericError,
      /^model\.layers\.3\.self_attn\.q_proj: .*not finite/,
    ],
  ])('%s is an error, and the session stays as it was', async (_, adapter, kind, message) => {
    const session = await ModelSession.open(union, { adapters: { good: makeAdapter(union, /q_proj$/) } })
    const error = await session.add('bad', adapter).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(kind)
    expect((error as Error).message).toMatch(message)
    expect(session.adapters).toEqual(['good'])
    await session.run(feedsOf(union, ROWS), { adapter: 'good' })
    await session.dispose()
    await expect(ModelSession.open(union, { adapters: { bad: adapter } })).rejects.toBeInstanceOf(kind)
  })

  it('a name that is taken or unknown', async () => {
    const session = await ModelSession.open(union, { adapters: { whaling: makeAdapter(union, /q_proj$/) } })
    await expect(session.add('whaling', makeAdapter(union, /q_proj$/))).rejects.toThrow(StateError)
    await expect(session.run(feedsOf(union, ROWS), { adapter: 'whalin' })).rejects.toThrow(/Did you mean whaling\?/)
    await expect(session.remove('x')).rejects.toThrow(MismatchError)
    await session.dispose()
  })

  it('linear layers in a form that takes no adapter are named', async () => {
    const model = await openModel('tests/golden/models/llama-q8')
    for (const node of model.onnx.proto.graph!.node) {
      if (node.opType === 'MatMulInteger') node.opType = 'QGemm'
    }
    const adapter = layer('model.layers.0.self_attn.q_proj', 64, 32)
    const error = await ModelSession.open(model, { adapters: { adapter } }).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(UnsupportedError)
    expect((error as Error).message).toMatch(/q_proj\/MatMul_quant \(QGemm\)/)
    await model.close()
  })

  it('feeds that no tensor can be made of', async () => {
    const session = await ModelSession.open(union)
    const feeds = feedsOf(union, ROWS)
    const short = { ...feeds, input_ids: { ...feeds.input_ids, data: new BigInt64Array(3) } }
    await expect(session.run(short)).rejects.toThrow(ConfigError)
    await expect(session.run(short)).rejects.toThrow(/input_ids.*expected 12.*got 3/)
    await session.dispose()
  })

  it('a second dispose ends no sooner than the first', async () => {
    const { host, closed } = messageHost()
    const model = await openModel(UNION, host)
    const session = await ModelSession.open(model)
    void session.dispose()
    await session.dispose()
    expect(closed()).toBe(1)
    await model.close()
  })

  it('dispose lets the runs finish that were asked for before it', async () => {
    const session = await ModelSession.open(union)
    const runs = [1, 2, 3].map(() => session.run(feedsOf(union, ROWS), { outputNames: ['logits'] }))
    await session.dispose()
    for (const { logits } of await Promise.all(runs)) expect(logits.dims).toEqual([2, 6, 2048])
  })

  it('calls after dispose', async () => {
    const session = await ModelSession.open(union)
    await session.dispose()
    await session.dispose()
    await expect(session.run(feedsOf(union, ROWS))).rejects.toThrow(StateError)
    await expect(session.add('a', makeAdapter(union, /q_proj$/))).rejects.toThrow(StateError)
  })
})

describe('in a worker', () => {
  it('computes what a session in this thread does, and ends with it', async () => {
    const { host, closed } = messageHost()
    const remote = await openModel(UNION, host)
    const adapter = makeAdapter(union, everyLinear)
    const feeds = feedsOf(union, ROWS)
    const here = await ModelSession.open(union, { adapters: { adapter } })
    const there = await ModelSession.open(remote, { adapters: { adapter } })
    for (const choice of [undefined, 'adapter', undefined]) {
      const [a, b] = [await here.run(feeds, { adapter: choice }), await there.run(feeds, { adapter: choice })]
      expect(b.logits.dims).toEqual(a.logits.dims)
      expect(maxDifference(a.logits, b.logits)).toBe(0)
    }
    await expect(there.run({}, { adapter: 'adapter' })).rejects.toMatchObject({ code: 'RUNTIME' })
    await here.dispose()
    await there.dispose()
    expect(closed()).toBe(1)
    await remote.close()
  })

  it('runs that overlap do not disturb one another', async () => {
    const { host } = messageHost()
    const remote = await openModel(UNION, host)
    const names = ['a', 'b', 'c']
    const adapters = Object.fromEntries(names.map((name, seed) => [name, makeAdapter(union, /v_proj$/, { seed })]))
    const session = await ModelSession.open(remote, { adapters })
    const feeds = feedsOf(union, ROWS)
    const together = await Promise.all(names.map((adapter) => session.run(feeds, { adapter })))
    for (const [i, adapter] of names.entries()) {
      expect(maxDifference((await session.run(feeds, { adapter })).logits, together[i].logits)).toBe(0)
    }
    await session.dispose()
    await remote.close()
  })
})

describe('idle modules', () => {
  it.each([
    [undefined, 0],
    [['cpu'], 0],
    [['wasm'], 0],
    [['webgpu', 'cpu'], 1],
  ] as const)('with providers %j are fed factors of rank %i', async (executionProviders, rank) => {
    const { module, fed } = recordingRuntime()
    const model = { onnx: union.onnx, runtime: { module } }
    const adapter = makeAdapter(union, /layers\.0\.self_attn\.k_proj$/, { rank: 3 })
    const session = await ModelSession.open(model, {
      adapters: { adapter, other: makeAdapter(union, /layers\.1\.self_attn\.k_proj$/) },
      ...(executionProviders && { executionProviders }),
    })
    const { logits } = await session.run(feedsOf(union, ROWS))
    expect(maxDifference(logits, (await plainRun(union, feedsOf(union, ROWS))).logits)).toBeLessThanOrEqual(5e-5)
    await session.run(feedsOf(union, ROWS), { adapter: 'adapter' })
    // Runs with `from` are copies to a GPU. Inputs of adapters have numbers as names: A and B of layer 0, then layer 1.
    const [, feeds] = fed.filter((one) => !('from' in one))
    const dims = (layer: number) => [2 * layer, 2 * layer + 1].map((input) => [...feeds[input].dims])
    // Factors have PEFT's layout if ONNX Runtime reads them in this layout, else they are transposed.
    const layout = (r: number) =>
      rank === 0
        ? [
            [r, 192],
            [64, r],
          ]
        : [
            [192, r],
            [r, 64],
          ]
    expect([dims(0), dims(1)]).toEqual([layout(3), layout(rank)])
    await session.dispose()
  })
})

it('a runtime that cannot be imported is a RuntimeError', async () => {
  const { host } = messageHost()
  const model = await openModel(UNION, { ...host, specifier: 'no-such-runtime' } as typeof host)
  await expect(ModelSession.open(model)).rejects.toMatchObject({ code: 'RUNTIME' })
  await model.close()
})
