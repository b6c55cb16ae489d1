// Training of single rows of embeddings gives PEFT's gradients and steps. Sessions, merges and resumed runs accept the
// adapters.

import { readFileSync } from 'node:fs'
import { afterAll, describe, expect, it } from 'vitest'
import { LoraAdapter, LowrankError, loadAdapter, MemoryDirectory, type Model, saveAdapter } from '../../src/api/node.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { rowsName } from '../../src/lora/part.js'
import { findEmbeddings } from '../../src/model/match/forms/lookup.js'
import { readTokenRows } from '../../src/model/match/read-base-tensor.js'
import { sessionModel } from '../../src/model/session-model.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import { openEngine } from '../../src/onnx/runtime/host.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { valueInfo } from '../../src/onnx/view/value-info.js'
import { ModelSession } from '../../src/run/model-session.js'
import { TrainEngine } from '../../src/train/engine/engine.js'
import { ADAMW } from '../../src/train/engine/optimizer.js'
import { loraPlusRates, readParameters, writeParameters } from '../../src/train/engine/parameters.js'
import { TrainingSessions } from '../../src/train/engine/sessions.js'
import { openTokenRows } from '../../src/train/graph/open-base.js'
import type { TrainInput } from '../../src/train/options.js'
import { addTokenRows } from '../../src/train/rows/token-rows.js'
import { STATE_FILE } from '../../src/train/saved/run-folder.js'
import { resolveSettings } from '../../src/train/settings.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import type { OpenTask } from '../../src/train/tasks/task.js'
import { train } from '../../src/train/train.js'
import { mergeOnnx } from '../merge/toolkit.js'
import { DataType } from '../onnx/toolkit.js'
import { directoryOf, feedsOf, inThread, maxDifference, openModel } from '../run/models.js'
import { cases } from '../thorough.js'
import { takeStep } from './take-step.js'
import { abortAt, data, trainTiny, WEIGHTS } from './tiny.js'

const golden = 'tests/golden/trained-tokens'
const numbers = JSON.parse(readFileSync(`${golden}/golden.json`, 'utf8'))
const { learningRate, ratio } = numbers
const encoder = 'tests/golden/text-classification/encoder'

const models = new Map<string, Promise<Model>>()
/** A model, opened once: of tests/golden/models, or at a path if the name has a slash. */
function modelOf(name: string): Promise<Model> {
  const model = models.get(name) ?? openModel(name.includes('/') ? name : `tests/golden/models/${name}`)
  models.set(name, model)
  return model
}
afterAll(async () => {
  for (const model of models.values()) await (await model).close()
})

type Tensors = Map<string, { data: Float32Array; shape: readonly number[] }>

/** Reads the values of a file by name. */
async function tensorsOf(directory: MemoryDirectory | ReturnType<typeof directoryOf>, path: string): Promise<Tensors> {
  const source = await directory.open(path)
  const file = await parseSafetensorsHeader(source)
  const tensors: Tensors = new Map()
  for (const name of file.tensors.keys()) tensors.set(name, await readTensorF32(file, name))
  await source.close()
  return tensors
}

const goldenOf = (name: string, file: string) => tensorsOf(directoryOf(`${golden}/${name}`), `${file}.safetensors`)
const startOf = (name: string) => loadAdapter(directoryOf(`${golden}/${name}/adapter-init`))

interface Batch {
  inputIds: number[][]
  attentionMask: number[][]
  labels: number[][]
}
const batches = (numbers.batches as Batch[]).map(({ inputIds, attentionMask, labels }) => {
  const lengths = attentionMask.map((row) => row.reduce((sum, entry) => sum + entry, 0))
  const cut = (row: number[], i: number) => Int32Array.from(row.slice(0, lengths[i]))
  const examples = inputIds.map((row, i) => ({ inputIds: cut(row, i), labels: cut(labels[i], i) }))
  return { examples, length: inputIds[0].length }
})

/** Takes steps on the golden batches, which change the adapter in place. */
async function steps(
  model: Model,
  adapter: LoraAdapter,
  count: number,
  options: { maxGradNorm: number; ratio?: number; weightDecay?: number },
) {
  const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
  const open = causalLm.open(model, [])
  const settings = resolveSettings({ threads: 1 })
  const sessions = await TrainingSessions.create({ model, open, adapter, settings, modules: undefined }, engine.remote)
  const names = sessions.parameters.map(({ name }) => name)
  const parameters = readParameters(adapter, names)
  const zeros = () => parameters.map(({ length }) => new Float32Array(length))
  const { maxGradNorm, weightDecay = 0.01 } = options
  const rates = loraPlusRates(sessions.parameters, options.ratio)
  await engine.remote.start(
    {
      parameters: sessions.parameters,
      optimizer: { weightDecay, rates },
      maxGradNorm,
    },
    { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 },
  )
  const losses: number[] = []
  for (let step = 0; step < count; step++) {
    const { examples, length } = batches[step % batches.length]
    const normalizer = open.normalizer(examples)
    const pass = await sessions.trainingPass(open.collate(examples, length), { normalizer, step, run: 0 })
    losses.push((await takeStep(engine.remote, [pass], learningRate)).loss)
  }
  const state = await engine.remote.state()
  writeParameters(adapter, names, state.parameters)
  await engine.close()
  const gradients = state.firstMoments.map((moment) => moment.map((value) => value / (1 - ADAMW.beta1)))
  return { losses, gradients: new Map(names.map((name, i) => [name, gradients[i]])) }
}

/** Returns the name of trained rows in PEFT's file. */
const rowKey = (name: string) => `base_model.model.${name.replace('[tokens]', '.token_adapter.trainable_tokens_delta')}`

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length)
  return Array.from(a).reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0)
}

/** Returns the name in PEFT's file for a tensor that is trained here. */
function peftKey(name: string): string {
  const half = /(wte|wpe|embed_tokens)\.([AB])$/.test(name) ? 'lora_embedding_$1' : 'lora_$1.weight'
  return `base_model.model.${name.replace(/([AB])$/, half)}`
}

describe.each(cases(['llama-embedding', 'gpt2-embedding'], ['qwen2-embedding']))('LoRA of embeddings: %s', (name) => {
  const { model, losses } = numbers[name]

  it("has PEFT's gradients", async () => {
    const { gradients } = await steps(await modelOf(model), await startOf(name), 1, { maxGradNorm: 0 })
    const wanted = await goldenOf(name, 'gradients')
    expect(gradients.size).toBe(wanted.size)
    for (const [parameter, values] of gradients) {
      const key = [...wanted.keys()].find((key) => key.replace('.default', '') === peftKey(parameter))!
      const { data, shape } = wanted.get(key)!
      const [rows, columns] = shape
      // B is trained as its transpose.
      const place = (i: number) => (parameter.endsWith('.B') ? (i % columns) * rows + Math.floor(i / columns) : i)
      const ordered = Float32Array.from(data.keys(), (i) => values[place(i)])
      expect(Math.max(...data), key).toBeGreaterThan(0.001)
      expect(largestDifference(ordered, data), key).toBeLessThan(1e-6)
    }
  })

  it('takes the steps of PEFT, and what is saved is what PEFT has then', async () => {
    const adapter = await startOf(name)
    const own = await steps(await modelOf(model), adapter, losses.length, { maxGradNorm: 1 })
    expect(largestDifference(own.losses, losses)).toBeLessThan(1e-4)
    const out = new MemoryDirectory()
    await saveAdapter(adapter, out)
    const [saved, wanted] = [await tensorsOf(out, WEIGHTS), await goldenOf(name, 'after')]
    expect(saved.size).toBe(wanted.size)
    for (const [key, { data }] of wanted) {
      const name = [...saved.keys()].find((saved) => key.endsWith(saved.replace(/^base_model\.model\./, '')))!
      expect(largestDifference(saved.get(name)!.data, data), key).toBeLessThan(1e-4)
    }
  })
})

describe.each(cases(['llama', 'qwen2-head'], ['llama-apart', 'qwen2']))('%s', (name) => {
  const { model, losses, tokens } = numbers[name]

  it("has PEFT's gradients of the rows", async () => {
    const { gradients } = await steps(await modelOf(model), await startOf(name), 1, { maxGradNorm: 0 })
    const wanted = await goldenOf(name, 'gradients')
    const keys = [...wanted.keys()].filter((key) => key.includes('tokens_delta'))
    const own = new Map([...gradients].map(([parameter, values]) => [rowKey(parameter), values]))
    expect(keys).toHaveLength(Array.isArray(tokens) ? 1 : 2)
    for (const key of keys) {
      const { data } = wanted.get(key)!
      expect(Math.max(...data), key).toBeGreaterThan(0.01)
      expect(largestDifference(own.get(key)!, data), key).toBeLessThan(1e-6)
    }
    expect(gradients.size).toBe(wanted.size)
  })

  it('takes the steps of PEFT, with weight decay', async () => {
    const adapter = await startOf(name)
    const own = await steps(await modelOf(model), adapter, losses.length, { maxGradNorm: 1 })
    expect(largestDifference(own.losses, losses)).toBeLessThan(1e-4)
    const wanted = await goldenOf(name, 'after')
    for (const part of adapter.parts('token-rows')) {
      expect(largestDifference(part.weight.data, wanted.get(rowKey(part.name))!.data), part.name).toBeLessThan(1e-4)
    }
  })

  it('starts from the rows of the base, and writes the config and the tensors of PEFT', async () => {
    const out = new MemoryDirectory()
    await trainTiny({ model: await modelOf(model), trainedTokens: tokens, out, ...abortAt(1), learningRate: 1e-9 })
    const [saved, wanted] = [await tensorsOf(out, WEIGHTS), await goldenOf(name, 'base-rows')]
    const keys = [...saved.keys()].filter((key) => !key.includes('.lora_'))
    expect(keys.sort()).toEqual([...wanted.keys()].sort())
    for (const key of keys) expect(largestDifference(saved.get(key)!.data, wanted.get(key)!.data)).toBeLessThan(1e-6)
    const config = JSON.parse(new TextDecoder().decode(out.files.get('adapter_config.json')))
    expect(config.trainable_token_indices).toEqual(tokens)
  })
})

it('takes the steps of PEFT’s LoRA+, whose rate of the rows is that of A', async () => {
  const { losses } = await steps(await modelOf('llama-optimum'), await startOf('llama'), 6, {
    maxGradNorm: 0,
    weightDecay: 0,
    ratio,
  })
  expect(largestDifference(losses, numbers.llama.loraPlusLosses)).toBeLessThan(2e-4)
})

describe('an encoder', () => {
  const { rows, maxLength } = JSON.parse(readFileSync(`${encoder}/golden/golden.json`, 'utf8'))
  const task = { task: 'text-classification', data: rows, maxLength, batchSize: rows.length, learningRate } as const
  const plain = { schedule: 'constant', warmupRatio: 0, weightDecay: 0.01, threads: 1 } as const
  const classify = async (options: Partial<TrainInput>) =>
    train({ model: await modelOf(encoder), ...task, ...plain, ...options })

  it("has PEFT's gradients, and takes its steps", async () => {
    const { losses } = numbers.bert
    const out = new MemoryDirectory()
    await classify({ adapter: await startOf('bert'), maxSteps: 6, out, ...abortAt(1) })
    const name = 'bert.embeddings.word_embeddings'
    const { data: wanted } = (await goldenOf('bert', 'gradients')).get(rowKey(rowsName(name)))!
    const { data: moment } = (await tensorsOf(out, STATE_FILE)).get(`firstMoments/${rowsName(name)}`)!
    const own = moment.map((value) => value / (1 - ADAMW.beta1))
    expect(largestDifference(own, wanted)).toBeLessThan(1e-6)
    const { report, adapter } = await classify({ adapter: await startOf('bert'), maxSteps: losses.length })
    expect(largestDifference(report.trainLoss, losses)).toBeLessThan(1e-4)
    const { data: after } = (await goldenOf('bert', 'after')).get(rowKey(rowsName(name)))!
    expect(largestDifference(adapter.get(rowsName(name), 'token-rows')!.weight.data, after)).toBeLessThan(1e-4)
  })

  it('gets the name that the embedding has in PEFT', async () => {
    const { adapter, report } = await classify({ trainedTokens: numbers.bert.tokens, config: { rank: 2 }, maxSteps: 1 })
    const [part] = adapter.parts('token-rows')
    expect(part.module).toBe('bert.embeddings.word_embeddings')
    const without = await classify({ config: { rank: 2 }, maxSteps: 1 })
    expect(report.trainableParams - without.report.trainableParams).toBe(3 * 16)
  })
})

describe('a saved adapter', () => {
  /** The loss of a golden batch by the logits of a session. */
  async function lossOf(session: ModelSession, model: Model, { examples }: (typeof batches)[number]): Promise<number> {
    let [sum, count] = [0, 0]
    for (const { inputIds, labels } of examples) {
      const { logits } = await session.run(feedsOf(model, [[...inputIds]]), { adapter: 'adapter' })
      const vocabulary = logits.dims[2]
      for (let i = 1; i < labels.length; i++) {
        if (labels[i] < 0) continue
        const row = Array.from((logits.data as Float32Array).subarray((i - 1) * vocabulary, i * vocabulary))
        sum += Math.log(row.reduce((total, value) => total + Math.exp(value), 0)) - row[labels[i]]
        count++
      }
    }
    return sum / count
  }

  it.each(
    cases(
      ['llama-q8', 'llama-genai-int4', 'merged-if'],
      ['llama-optimum', 'llama-q4', 'qwen2-optimum', 'gpt2-optimum'],
    ),
  )('gives a session the loss that the training of %s has', async (name) => {
    const model = await modelOf(name)
    const out = new MemoryDirectory()
    const { adapter, report } = await trainTiny({
      model,
      out,
      trainedTokens: [86, 4, 14],
      memory: 'low',
      config: { rank: 2, dropout: 0 },
    })
    expect(report.trainableParams).toBe(adapter.totalTrainableParams())
    const loaded = await loadAdapter(out)
    const [rows] = loaded.parts('token-rows')
    expect(rows.weight.data).toEqual(adapter.parts('token-rows')[0].weight.data)
    const session = await ModelSession.open(model, { adapters: { adapter: loaded }, threads: 1 })
    const own = await lossOf(session, model, batches[0])
    await session.dispose()
    const { losses } = await steps(model, loaded, 1, { maxGradNorm: 0 })
    // In these graphs, sessions round the inputs of products, and training does not.
    const isRounded = name === 'llama-q8' || name === 'llama-genai-int4'
    expect(Math.abs(own - losses[0])).toBeLessThan(isRounded ? 0.02 : 1e-4)
  })

  it('is merged to the same logits', async () => {
    const model = await modelOf('llama-optimum')
    const adapter = await startOf('llama')
    const merged = new MemoryDirectory({}, 'merged')
    await mergeOnnx(model.onnx, adapter, merged)
    const onnx = await loadOnnx(merged, model.onnx.fileName)
    const session = await ModelSession.open(model, { adapters: { adapter }, threads: 1 })
    const plain = await ModelSession.open({ onnx, runtime: inThread }, { threads: 1 })
    const feeds = feedsOf(model, [[86, 9, 14, 3, 17]])
    const { logits } = await session.run(feeds, { adapter: 'adapter' })
    expect(maxDifference(logits, (await plain.run(feeds)).logits)).toBeLessThan(1e-5)
    await session.dispose()
    await plain.dispose()
    await onnx.close()
  })

  it('is resumed to the same bytes, with norms that are trained whole, DoRA and dropout', async () => {
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const config = { rank: 2, useDora: true, dropout: 0.1, modulesToSave: ['norm'] }
    const run = { model: await modelOf('llama-optimum'), trainedTokens: [86, 4, 14], config, maxSteps: 4 }
    await trainTiny({ ...run, out: whole })
    await trainTiny({ ...run, out: broken, ...abortAt(2) })
    const others = trainTiny({ ...run, trainedTokens: [86, 4], out: broken, resume: true })
    await expect(others).rejects.toThrow(/another trainableTokenIndices/)
    await trainTiny({ ...run, out: broken, resume: true })
    expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  })
})

it('finds the gradient of the rows of a quantized, tied embedding', async () => {
  const model = await modelOf('llama-q4')
  const { adapter } = await trainTiny({
    model,
    trainedTokens: [86, 4, 14],
    config: { rank: 2, dropout: 0 },
    maxSteps: 2,
  })
  const [rows] = adapter.parts('token-rows')
  const start = rows.weight.data.slice()
  const { gradients } = await steps(model, adapter, 1, { maxGradNorm: 0 })
  const gradient = gradients.get(rows.name)!
  const square = gradient.reduce((sum, value) => sum + value ** 2, 0)
  const lossAt = async (length: number) => {
    rows.weight.data.set(start.map((value, i) => value + (length / Math.sqrt(square)) * gradient[i]))
    return (await steps(model, adapter, 1, { maxGradNorm: 0 })).losses[0]
  }
  // The other parameters have taken the same step in both.
  const factors = readParameters(adapter, [...gradients.keys()])
  const restore = () => writeParameters(adapter, [...gradients.keys()], factors)
  restore()
  const above = await lossAt(0.05)
  restore()
  const below = await lossAt(-0.05)
  restore()
  rows.weight.data.set(start)
  const { gradients: there } = await steps(model, adapter, 1, { maxGradNorm: 0 })
  const along = there.get(rows.name)!.reduce((sum, value, i) => sum + value * gradient[i], 0) / Math.sqrt(square)
  expect(along).toBeGreaterThan(0.1)
  expect((above - below) / 0.1 / along).toBeCloseTo(1, 1)
})

it.each(['int4', 'uint4-zeros', 'packed', 'int8'])(
  'lets a lookup in %s read trained rows, as PyTorch',
  async (form) => {
    const directory = directoryOf(`tests/golden/lookups/${form}`)
    const numbers = await tensorsOf(directory, 'numbers.safetensors')
    const { tokens } = JSON.parse(readFileSync('tests/golden/lookups/golden.json', 'utf8'))
    const onnx = await loadOnnx(directory, 'model.onnx')
    const graph = new Graph(onnx.proto)
    const [embedding] = findEmbeddings(graph)
    const table = numbers.get('table')!
    const wanted = tokens.flatMap((token: number) => [...table.data.subarray(token * 32, (token + 1) * 32)])
    expect(largestDifference(await readTokenRows(onnx, graph, embedding, tokens), wanted)).toBeLessThan(1e-6)
    const rows = { name: 'rows', tokens, features: 32, embedding: embedding.name, heads: [] }
    const [{ input, shape }] = openTokenRows(new Builder(graph, 'trained'), [rows])
    graph.inputs.push(valueInfo(input, DataType.FLOAT, shape))
    const runtime = await loadNodeRuntime()
    const session = await runtime.createSession(await sessionModel(onnx, graph.toModel()), { threads: 1 })
    const ids = { type: 'int64', data: BigInt64Array.from([3, 0, 39, 7, 7, 12, 3, 25], BigInt), dims: [2, 4] } as const
    const own = { type: 'float32', data: numbers.get('rows')!.data, dims: [tokens.length, 32] } as const
    const { y } = await session.run({ ids, [input]: own }, ['y'])
    expect(largestDifference(y.data as Float32Array, numbers.get('trained')!.data)).toBeLessThan(1e-4)
    await session.dispose()
    await onnx.close()
  },
)

describe('refuses', () => {
  type Case = [what: string, options: Partial<TrainInput>, message: RegExp]
  it.each<Case>([
    ['no tokens', { trainedTokens: [] }, /^trainedTokens: not valid.*a list of tokens/],
    ['a number that is no id', { trainedTokens: [1.5] }, /^trainedTokens: not valid/],
    ['a token twice', { trainedTokens: [5, 9, 5] }, /^trainedTokens: the token 5 is given twice/],
    ['a text and its id', { trainedTokens: [67, 'a'] }, /the token "a" is given twice.*67 has the id 67, too/],
    [
      'a text that is no token',
      { trainedTokens: ['<tool>'] },
      /the tokenizer has no token "<tool>".*splits this text into \d tokens.*resize_token_embeddings.*export the model again/s,
    ],
    [
      'a text of one token with another spelling',
      { trainedTokens: [' the'] },
      /the tokenizer has no token " the".*The token for this text has the id \d+/s,
    ],
    [
      'a token beyond the graph',
      { trainedTokens: [5, 2048] },
      /model\.embed_tokens has no row for the token 2048.*from 0 to 2047.*fixed in the graph.*export the model again/s,
    ],
    ['an unknown module', { trainedTokens: { embed_token: [5] } }, /embed_token.*Did you mean model\.embed_tokens/s],
    [
      'LoRA on the output layer with the same weight',
      { trainedTokens: [5], config: { targetModules: ['q_proj', 'lm_head'] } },
      /rows of lm_head cannot be trained together with a layer of LoRA.*`targetModules`/s,
    ],
    [
      'the whole embedding',
      { trainedTokens: [5], config: { modulesToSave: ['embed_tokens'] } },
      /rows of model\.embed_tokens cannot be trained together with its whole weight.*`modulesToSave`/s,
    ],
    [
      'other tokens of a tied output layer that stays tied',
      { trainedTokens: { embed_tokens: [5], lm_head: [6] }, config: { ensureWeightTying: true } },
      /lm_head is tied to the embedding, and would have other trained tokens/,
    ],
    ['PEFT’s name', { config: { trainableTokenIndices: [5] } }, /trainableTokenIndices.*the option trainedTokens/],
  ])('%s, by name', async (_, options, message) => {
    const out = new MemoryDirectory()
    const error = await trainTiny({ model: await modelOf('llama-optimum'), out, ...options }).catch(
      (error: unknown) => error,
    )
    expect(error).toBeInstanceOf(LowrankError)
    expect((error as Error).message).toMatch(message)
    expect(out.files.size).toBe(0)
  })

  it('tokens beside an adapter, which has its own', async () => {
    const adapter = await startOf('llama')
    const run = train({ model: await modelOf('llama-optimum'), data, adapter, trainedTokens: [5] })
    await expect(run).rejects.toThrow(/trainedTokens: not together with adapter/)
  })

  it.each([
    ['tests/golden/image-classification/vit', /rows of the input embedding cannot be trained.*reads no input_ids/s],
    ['tests/golden/graphs/t5', /cannot be trained in a model with an encoder and a decoder/],
  ])('%s', async (path, message) => {
    const adapter = new LoraAdapter({ trainableTokenIndices: [5] })
    const context = { model: await modelOf(path), open: {} as OpenTask, modules: undefined }
    await expect(addTokenRows(adapter, context)).rejects.toThrow(message)
  })
})
