// Activated LoRA: the numbers of PEFT in sessions and in training, one reading of what stands before the invocation,
// folders and GGUF that keep the tokens, and refusals by name.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import type { Model } from '../../src/graph/model-folder.js'
import { ModelSession } from '../../src/infer/model-session.js'
import { type AdapterFormat, convertAdapter, LoraAdapter, merge, planMerge, unmerge } from '../../src/node.js'
import { loadAdapter, saveAdapter } from '../../src/peft/adapter-folder.js'
import { openEngine } from '../../src/runtime/host.js'
import { causalLm } from '../../src/tasks/causal-lm.js'
import { TrainEngine } from '../../src/train/engine.js'
import { readParameters } from '../../src/train/parameters.js'
import { TrainingSessions } from '../../src/train/sessions.js'
import { resolveSettings } from '../../src/train/settings.js'
import { goldenPath, readJson, tensorsIn } from '../golden.js'
import { directoryOf, makeAdapter, maxDifference, openModel } from '../infer/models.js'
import { data, trainTiny } from './tiny.js'

interface Batch {
  inputIds: number[][]
  attentionMask: number[][]
  labels: number[][]
}
const numbers = readJson(goldenPath('alora', 'golden.json')) as {
  tokens: number[]
  prompts: Record<string, number[]>
  texts: Record<string, number[]>
  learningRate: number
  batches: Batch[]
  losses: number[]
}
const { tokens, prompts, texts } = numbers
const start = () => loadAdapter(directoryOf('tests/golden/alora/adapter'))

let model: Model
beforeAll(async () => {
  model = await openModel('tests/golden/models/qwen2-optimum')
})
afterAll(() => model.close())

const feeds = (rows: readonly number[][]) => ({
  input_ids: {
    type: 'int64' as const,
    data: BigInt64Array.from(rows.flat(), BigInt),
    dims: [rows.length, rows[0].length],
  },
})

describe('a session', () => {
  it('computes PEFT’s logits: invoked in the middle, twice, never, and at once', async () => {
    const expected = await tensorsIn(directoryOf('tests/golden/alora'), 'logits.safetensors')
    const session = await ModelSession.open(model, { adapters: { a: await start() } })
    const names = Object.keys(prompts)
    const check = (logits: Float32Array, row: number, name: string) => {
      const { data, shape } = expected.get(name)!
      for (let i = 0; i < shape[0]; i++) {
        const from = (row * shape[0] + i) * 2048
        const own = logits.subarray(from, from + shape[1])
        expect(maxDifference(own, data.subarray(i * shape[1], (i + 1) * shape[1]))).toBeLessThan(1e-4)
      }
    }
    for (const name of names) {
      const { logits } = await session.run(feeds([prompts[name]]), { adapter: 'a' })
      check(logits.data as Float32Array, 0, name)
    }
    const { logits } = await session.run(feeds(Object.values(prompts)), { adapter: names.map(() => 'a') })
    for (const [row, name] of names.entries()) check(logits.data as Float32Array, row, name)
    await session.dispose()
  })

  it('writes PEFT’s texts, and reads once for all what the base reads', async () => {
    const other = makeAdapter(model, /q_proj|up_proj/)
    const second = new LoraAdapter({ ...other.config, aloraInvocationTokens: tokens })
    for (const { name, weightA, weightB } of other.parts('linear')) second.addFactors(name, weightA, weightB)
    const adapters = { a: await start(), b: second, plain: other }
    const session = await ModelSession.open({ ...model, eosTokenIds: [], generationConfig: {} } as Model, { adapters })
    const write = (ids: number[], adapter: string | null) =>
      session.generate({ ids }, { adapter, maxNewTokens: 8, temperature: 0 })
    const all = Object.keys(prompts)
    const together = await Promise.all(all.map((name) => write(prompts[name], 'a')))
    expect(together.map(({ tokenIds }) => tokenIds)).toEqual(all.map((name) => texts[name]))

    const history = Array.from({ length: 60 }, (_, i) => 40 + ((i * 37) % 900))
    const asked = [...history, ...tokens, 5]
    const alone = await Promise.all(
      ['a', 'b'].map(async (name) => {
        const fresh = await ModelSession.open(model, { adapters: { [name]: adapters[name as 'a'] }, prefixCache: 0 })
        const { text } = await fresh.generate({ ids: asked }, { adapter: name, maxNewTokens: 8, temperature: 0 })
        await fresh.dispose()
        return text
      }),
    )
    const cached = []
    for (const name of ['a', 'b', null, 'plain']) cached.push(await write(asked, name))
    expect(cached.map(({ cachedTokens }) => cachedTokens)).toEqual([0, 60, 60, 0])
    expect(cached.slice(0, 2).map(({ text }) => text)).toEqual(alone)
    await session.dispose()
  })

  it('refuses mixes, parts that count for whole texts, and runs that go on', async () => {
    const session = await ModelSession.open(model, { adapters: { a: await start(), b: makeAdapter(model, /q_proj/) } })
    const run = (adapter: object, more = {}) =>
      session.run({ ...feeds([prompts.middle]), ...more }, { adapter } as never)
    await expect(run({ a: 1, b: 1 })).rejects.toThrow(/activated LoRA/)
    const past = { type: 'float32' as const, data: new Float32Array(2 * 3 * 8), dims: [1, 2, 3, 8] }
    const caches = session.inputNames.filter((name) => name.startsWith('past'))
    const filled = Object.fromEntries(caches.map((name) => [name, past]))
    await expect(session.run({ ...feeds([[5]]), ...filled }, { adapter: 'a' })).rejects.toThrow(/activated LoRA/)
    const whole = await start()
    whole.addReplacement('model.norm.weight', { data: new Float32Array(32), shape: [32] })
    await expect(session.add('c', whole)).rejects.toThrow(/whole tensors/)
    const choice = { adapter: 'a' }
    const verbs = {
      classify: () => session.classify('x', choice),
      embed: () => session.embed('x', choice),
      tag: () => session.tag('x', choice),
    }
    for (const [verb, call] of Object.entries(verbs)) {
      await expect(call(), verb).rejects.toThrow(/^alora_invocation_tokens: an activated LoRA/)
    }
    await session.dispose()
  })
})

describe('training', () => {
  it('takes PEFT’s steps, where some rows are never invoked', async () => {
    const adapter = await start()
    const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
    const open = causalLm.open(model, [])
    const settings = resolveSettings({ threads: 1 })
    const sessions = await TrainingSessions.create(
      { model, open, adapter, settings, modules: undefined },
      engine.remote,
    )
    const parameters = readParameters(
      adapter,
      sessions.parameters.map(({ name }) => name),
    )
    const zeros = () => parameters.map(({ length }) => new Float32Array(length))
    const rates = sessions.parameters.map(() => 1)
    const optimizer = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01, rates }
    const begin = { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 }
    await engine.remote.start({ parameters: sessions.parameters, optimizer, maxGradNorm: 1 }, begin)
    for (const [step, loss] of numbers.losses.entries()) {
      const { inputIds, attentionMask, labels } = numbers.batches[step % numbers.batches.length]
      const examples = inputIds.map((row, i) => {
        const length = attentionMask[i].reduce((sum, entry) => sum + entry, 0)
        return { inputIds: Int32Array.from(row.slice(0, length)), labels: Int32Array.from(labels[i].slice(0, length)) }
      })
      const normalizer = open.normalizer(examples)
      const pass = await sessions.trainingPass(open.collate(examples, inputIds[0].length), { normalizer, step, run: 0 })
      expect(Math.abs((await engine.remote.step([pass], numbers.learningRate)).loss - loss)).toBeLessThan(1e-4)
    }
    await engine.close()
  })

  it('makes adapters that keep their tokens, and refuses what has no token by token form', async () => {
    const aloraInvocationTokens = Array.from(model.tokenizer!.encode((data[3] as { text: string }).text).slice(2, 4))
    const config = { rank: 2, aloraInvocationTokens }
    const { adapter } = await trainTiny({ model, config, maxSteps: 1 })
    expect(adapter.config).toMatchObject({ aloraInvocationTokens, taskType: 'CAUSAL_LM' })
    const never = trainTiny({ model, config: { rank: 2, aloraInvocationTokens: [2047, 2047] }, maxSteps: 1 })
    await expect(never).rejects.toThrow(/no record holds these tokens, so nothing would be learned; got \[2047,2047\]/)
    for (const more of [{ packing: true }, { trainedTokens: [3] }, { config: { ...config, bias: 'all' as const } }]) {
      const refused = trainTiny({ model, config, maxSteps: 1, ...more })
      await expect(refused).rejects.toThrow(/aloraInvocationTokens/)
    }
    expect(() => new LoraAdapter({ ...config, useDora: true })).toThrow(/aloraInvocationTokens/)
  })
})

describe('files', () => {
  it('keep the tokens as PEFT and llama.cpp have them', async () => {
    const folder = new MemoryDirectory()
    await saveAdapter(await start(), folder)
    const config = readJson(goldenPath('alora', 'adapter', 'adapter_config.json')) as Record<string, unknown>
    const own = JSON.parse(new TextDecoder().decode(folder.files.get('adapter_config.json')))
    expect(own.alora_invocation_tokens).toEqual(config.alora_invocation_tokens)
    const [gguf, back] = [new MemoryDirectory(), new MemoryDirectory()]
    const base = goldenPath('models', 'qwen2-optimum')
    await convertAdapter(goldenPath('alora', 'adapter'), { to: 'gguf', base, out: gguf })
    await convertAdapter(gguf, { to: 'peft', base, out: back })
    expect((await loadAdapter(back)).config.aloraInvocationTokens).toEqual(tokens)
  })

  it('are refused by name where a weight is one for all tokens', async () => {
    const adapter = goldenPath('alora', 'adapter')
    const base = goldenPath('models', 'qwen2-optimum')
    for (const to of ['onnx-adapter', 'mlx', 'ollama'] satisfies AdapterFormat[]) {
      const refused = convertAdapter(adapter, { to, base, out: new MemoryDirectory() })
      await expect(refused, to).rejects.toThrow(/alora_invocation_tokens/)
    }
    const [onnx, out] = [`${base}/onnx/model.onnx`, new MemoryDirectory()]
    const merges = {
      merge: () => merge({ base: onnx, adapters: adapter, out }),
      planMerge: () => planMerge({ base: onnx, adapters: adapter, out }),
      unmerge: () => unmerge({ merged: onnx, adapters: adapter, out }),
    }
    for (const [verb, call] of Object.entries(merges)) {
      await expect(call(), verb).rejects.toThrow(/alora_invocation_tokens/)
    }
    const loaded = await start()
    expect(() => loaded.layer(loaded.names()[0]).merge()).toThrow(/alora_invocation_tokens/)
    expect(() => new LoraAdapter({ aloraInvocationTokens: [] })).toThrow(/aloraInvocationTokens/)
  })
})
