// Biases and modules that are trained whole: the ones in a new adapter, their first values, and that everything else in
// lowrank accepts them.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type LoraAdapter, LowrankError, loadAdapter, MemoryDirectory, type Model } from '../../src/api/node.js'
import { findLinears } from '../../src/model/match/linears.js'
import type { NodeProto } from '../../src/onnx/format/gen/onnx_pb.js'
import { loadOnnx, OnnxModel } from '../../src/onnx/format/model.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import type { TrainInput } from '../../src/train/options.js'
import { train } from '../../src/train/train.js'
import { mergeOnnx } from '../merge/toolkit.js'
import { DataType, floatTensor } from '../onnx/toolkit.js'
import { feedsOf, inThread, maxDifference, openModel } from '../run/models.js'
import { abortAt, data, WEIGHTS } from './tiny.js'

const encoder = 'tests/golden/text-classification/encoder'
const { rows, maxLength } = JSON.parse(readFileSync(`${encoder}/golden/golden.json`, 'utf8'))

let bert: Model
let llama: Model
beforeAll(async () => {
  bert = await openModel(encoder)
  llama = await openModel('tests/golden/models/llama-optimum')
})
afterAll(async () => {
  await bert.close()
  await llama.close()
})

type Config = TrainInput['config']

const classify = (config: Config, options: Partial<TrainInput> = {}) => {
  const task = { task: 'text-classification', data: rows, maxLength, batchSize: rows.length } as const
  return train({ model: bert, ...task, maxSteps: 3, learningRate: 1e-2, threads: 1, config, ...options })
}
const write = (config: Config, options: Partial<TrainInput> = {}) => {
  const few = { data: data.slice(0, 8), maxLength: 24, batchSize: 4 }
  return train({
    model: llama,
    ...few,
    maxSteps: 3,
    learningRate: 1e-2,
    threads: 1,
    config: { rank: 2, ...config },
    ...options,
  })
}

const namesOf = (adapter: LoraAdapter) => adapter.parts('replacement').map(({ name }) => name)

describe('a new adapter', () => {
  it('with bias lora_only has the biases of its layers, under PEFT’s names, as the base has them', async () => {
    const { adapter } = await classify(
      { rank: 2, targetModules: ['query'], bias: 'lora_only' },
      { signal: AbortSignal.abort() },
    )
    const own = adapter.parts('replacement').filter(({ name }) => name.includes('query'))
    expect(own.map(({ name, key, shape }) => [name, key, shape])).toEqual(
      [0, 1].map((i) => {
        const module = `bert.encoder.layer.${i}.attention.self.query`
        return [`${module}.bias`, `${module}.base_layer.bias`, [16]]
      }),
    )
    const tensor = bert.onnx.proto.graph!.initializer.find(({ name }) =>
      name.endsWith('layer.1.attention.self.query.bias'),
    )!
    const stored = new Float32Array((await bert.onnx.readTensor(tensor)).slice().buffer)
    expect([...own[1].weight.data]).toEqual([...stored])
    expect(namesOf(adapter)).toHaveLength(2 + 4) // and the head
  })

  it('with bias all has every bias of the model', async () => {
    const { adapter } = await classify({ rank: 2, bias: 'all' }, { signal: AbortSignal.abort() })
    const biases = namesOf(adapter).filter((name) => name.startsWith('bert.') && !name.includes('pooler'))
    expect(biases).toHaveLength(1 + 2 * 8)
    expect(biases.every((name) => name.endsWith('.bias'))).toBe(true)
    expect(biases).toContain('bert.embeddings.LayerNorm.bias')
  })

  it('leaves LoRA away from a module that is trained whole, and says so to PEFT', async () => {
    const { adapter } = await classify({ rank: 2, modulesToSave: ['layer.1.intermediate.dense'] })
    const module = 'bert.encoder.layer.1.intermediate.dense'
    expect(adapter.has(module)).toBe(false)
    expect(adapter.get(`${module}.weight`, 'replacement')?.shape).toEqual([32, 16])
    expect(adapter.config.excludeModules).toEqual([module])
  })
})

describe('training', () => {
  it.each<[string, () => Promise<unknown>, RegExp]>([
    [
      'an unknown module',
      () => write({ modulesToSave: ['modell.norm'] }),
      /modulesToSave: no module .*"modell.norm".*Did you mean norm or model\.norm/s,
    ],
    [
      'a tied embedding that stays tied',
      () => write({ modulesToSave: ['embed_tokens'], ensureWeightTying: true }),
      /model\.embed_tokens\.weight: an embedding cannot be trained whole and stay tied/,
    ],
  ])('refuses %s before anything is written', async (_, run, message) => {
    const error = await run().catch((error: unknown) => error)
    expect(error).toBeInstanceOf(LowrankError)
    expect((error as Error).message).toMatch(message)
  })

  it('refuses a weight that is stored as integers, by name', async () => {
    const model = await openModel('tests/golden/models/llama-q4')
    const error = await write({ modulesToSave: ['lm_head', 'layers.0.mlp.up_proj'] }, { model }).catch(
      (error: unknown) => error,
    )
    await model.close()
    expect((error as Error).message).toMatch(
      /up_proj\.weight: it cannot be trained whole on this graph: its weight is stored as integers.*Leave its module out/s,
    )
  })

  it('refuses a weight that PyTorch stores the other way round, by name', async () => {
    const model = await openModel('tests/golden/models/gpt2-optimum')
    const error = await write({ modulesToSave: ['h.0.mlp.c_fc'] }, { model }).catch((error: unknown) => error)
    await model.close()
    expect((error as Error).message).toMatch(/h\.0\.mlp\.c_fc\.weight: it cannot be trained whole.*Conv1D/s)
  })

  it('finds the same gradient of a bias that a product by integers adds itself, and of one that is added behind it', async () => {
    const base = await openModel('tests/golden/models/llama-q4')
    const module = 'model.layers.0.self_attn.q_proj'
    /** Adds a bias to q_proj of the model. */
    const withBias = (add: (graph: Graph, node: NodeProto, bias: string) => void): Model => {
      const graph = new Graph(base.onnx.proto)
      const node = findLinears(graph).find(({ name }) => name === module)!.node
      const values = Array.from({ length: 64 }, (_, i) => 0.1 * Math.sin(i))
      add(graph, node, graph.addInitializer(floatTensor(`${module}.bias`, DataType.FLOAT, values, [64])))
      const onnx = new OnnxModel(base.onnx.name, base.onnx.fileName, graph.toModel(), base.onnx.files)
      return Object.create(base, { onnx: { value: onnx } })
    }
    const inside = withBias((graph, node, bias) => {
      graph.setInputs(node, [...node.input, ...Array(5 - node.input.length).fill(''), bias])
    })
    const behind = withBias((graph, node, bias) => {
      const [output] = node.output
      graph.setOutput(node, 0, graph.freshName('product'))
      graph.setOutput(
        new Builder(graph, '/model/layers.0/self_attn/q_proj').node('Add', [node.output[0], bias]),
        0,
        output,
      )
    })
    const config = { targetModules: ['q_proj'], bias: 'lora_only' } as const
    const [a, b] = [await write(config, { model: inside }), await write(config, { model: behind })]
    const values = [a, b].map(({ adapter }) => [...adapter.get(`${module}.bias`, 'replacement')!.weight.data])
    await base.close()
    expect(a.report.trainLoss[2]).toBeCloseTo(b.report.trainLoss[2], 5)
    values[0].forEach((value, i) => void expect(value).toBeCloseTo(values[1][i], 5))
    expect(Math.max(...values[0].map((value, i) => Math.abs(value - 0.1 * Math.sin(i))))).toBeGreaterThan(1e-3)
  })

  it.each<[string, Config, (config: Config, options: Partial<TrainInput>) => ReturnType<typeof train>]>([
    ['biases', { rank: 2, bias: 'all', dropout: 0.1 }, classify],
    ['norms, a head and an embedding', { modulesToSave: ['norm', 'lm_head', 'embed_tokens'] }, write],
  ])('resumes %s to the same bytes', async (_, config, run) => {
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    await run(config, { out: whole, maxSteps: 4 })
    await run(config, { out: broken, maxSteps: 4, ...abortAt(2) })
    await run(config, { out: broken, maxSteps: 4, resume: true })
    expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  })
})

describe.each<[string, Config]>([
  ['norms and the head', { modulesToSave: ['norm', 'input_layernorm', 'lm_head'] }],
  ['an embedding', { modulesToSave: ['embed_tokens'] }],
  ['a linear layer', { modulesToSave: ['layers.0.mlp.up_proj'] }],
])('%s', (_, config) => {
  it('lower the loss, and sessions and merges of the saved folder agree', async () => {
    const out = new MemoryDirectory()
    const { report } = await write(config, { out, maxSteps: 6, evalData: data.slice(0, 8) })
    expect(report.evalLoss!.after).toBeLessThan(report.evalLoss!.before)
    const adapter = await loadAdapter(out)
    const merged = new MemoryDirectory({}, 'merged')
    await mergeOnnx(llama.onnx, adapter, merged)
    const onnx = await loadOnnx(merged, llama.onnx.fileName)
    const session = await ModelSession.open(
      { onnx: llama.onnx, runtime: inThread },
      { adapters: { adapter }, threads: 1 },
    )
    const plain = await ModelSession.open({ onnx, runtime: inThread }, { threads: 1 })
    const feeds = feedsOf(llama, [[5, 9, 40, 3, 17]])
    const { logits } = await session.run(feeds, { adapter: 'adapter' })
    expect(maxDifference(logits, (await plain.run(feeds)).logits)).toBeLessThan(5e-5)
    expect(maxDifference(logits, (await session.run(feeds)).logits)).toBeGreaterThan(1e-3)
    await session.dispose()
    await plain.dispose()
    await onnx.close()
  })
})
