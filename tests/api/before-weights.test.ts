// What cannot be handled is refused before weights are downloaded: every verb, on every kind of model, from a Hub that
// counts what it sends.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { MemoryDirectory } from '../../src/core/base/bytes.js'
import { findLinears } from '../../src/model/match/linears.js'
import { mapTensors } from '../../src/onnx/format/messages.js'
import { loadOnnx, serializeModel } from '../../src/onnx/format/model.js'
import { DataType, externalTensor, isExternal, weightRange } from '../../src/onnx/format/tensors.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { valueInfo } from '../../src/onnx/view/value-info.js'
import { lowrankHere } from '../app/cli/in-process.js'
import { root } from '../app/cli/lowrank.js'
import { golden } from '../files/io/hub/publish.js'
import { current, useHub } from '../files/io/hub/toolkit.js'

useHub()

// Imported from dist, because src has no compiled scripts for worker threads.
const built = (file: string) => import(pathToFileURL(path.join(root, 'dist', file)).href)
const { configureHub, evaluate, LoraAdapter, openSession, openTrainer, train }: typeof import('../../src/api/node.js') =
  await built('api/node.js')
const { createHandler }: typeof import('../../src/serve/node/entry.js') = await built('serve/node/entry.js')

const outer = { ...process.env }

beforeEach(() => {
  process.env.HF_HOME = current.home
  process.env.HF_ENDPOINT = current.hub.endpoint
})

afterEach(() => {
  // Commands show downloads, also those of later calls in this process.
  configureHub({ on: undefined })
  process.env = { ...outer }
})

type Files = Record<string, Uint8Array>

function filesOf(folder: string): Files {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  return Object.fromEntries(
    entries.map(({ parentPath, name }) => {
      const file = path.join(parentPath, name)
      return [path.relative(folder, file), readFileSync(file)]
    }),
  )
}

/** Moves the weights of each graph into a file beside it. */
async function withWeightsBeside(files: Files): Promise<Files> {
  const moved = { ...files }
  for (const name of Object.keys(files).filter((file) => file.endsWith('.onnx'))) {
    const location = `${path.basename(name)}_data`
    const { proto } = await loadOnnx(new MemoryDirectory(files), name)
    const changed = mapTensors(proto, (tensor) =>
      isExternal(tensor) ? externalTensor(tensor, { ...weightRange(tensor, name), location }) : tensor,
    )
    moved[name] = serializeModel(changed)
    moved[`${name}_data`] = files[name]
  }
  return moved
}

const KINDS = {
  'a graph with its weights beside it': { folder: 'models/llama-genai', operator: 'SimplifiedLayerNormalization' },
  'an encoder and a decoder': { folder: 'graphs/t5', operator: 'Softmax', change: withWeightsBeside },
  'three graphs': { folder: 'graphs/llava', operator: 'Softmax', change: withWeightsBeside },
}
/** Attention that nobody has does not tell the size of the heads either. */
const ATTENTION = { folder: 'models/llama-genai', operator: 'GroupQueryAttention' }
const BROKEN = {
  ...KINDS,
  'a graph with other attention': ATTENTION,
  // No gradient passes positions.
  'a graph with other positions': { folder: 'models/llama-optimum', operator: 'Cos', change: withWeightsBeside },
}
type Kind = keyof typeof BROKEN

async function publishModel(kind: Kind, isBroken: boolean): Promise<void> {
  const { folder, operator, change = async (files) => files } = BROKEN[kind] as (typeof KINDS)['three graphs']
  const files = await change(filesOf(path.join('tests/golden', folder)))
  const broken = Object.entries(files).map(([name, bytes]) => {
    if (!isBroken || !name.endsWith('.onnx')) return [name, bytes]
    const text = Buffer.from(bytes).toString('latin1').replaceAll(operator, unknown(operator))
    return [name, Buffer.from(text, 'latin1')]
  })
  const lfs = Object.keys(files).filter((name) => name.includes('.onnx'))
  current.hub.repositories.set('org/model', { files: Object.fromEntries(broken), lfs })
  current.hub.repositories.set('org/lora', { files: filesOf(golden('f32')), lfs: ['adapter_model.safetensors'] })
}

/** An operator that nobody has, with a name as long. */
const unknown = (operator: string) => `Un${operator.slice(2)}`

const adapters = { lora: 'org/lora' }
const recordsOf = (kind: Kind) =>
  `models/data/${kind === 'an encoder and a decoder' ? 'summaries' : 'scripture.eval'}.jsonl`
const VERBS = {
  openSession: (adapter: boolean) => openSession('org/model', adapter ? { adapters } : {}),
  createHandler: (adapter: boolean) => createHandler({ model: 'org/model', ...(adapter && { adapters }) }),
  evaluate: (adapter: boolean, kind: Kind) =>
    evaluate({ model: 'org/model', data: recordsOf(kind), ...(adapter && { adapters }), on: {} }),
  train: (adapter: boolean, kind: Kind) =>
    train({ model: 'org/model', data: recordsOf(kind), ...(adapter && { adapter: 'org/lora' }) }),
  'lowrank generate': (adapter: boolean) => command(adapter, 'generate', '--model', 'org/model', '--prompt', 'a'),
  'lowrank evaluate': (adapter: boolean, kind: Kind) =>
    command(adapter, 'evaluate', '--model', 'org/model', '--data', recordsOf(kind)),
  'lowrank serve': (adapter: boolean) => command(adapter, 'serve', '--model', 'org/model', '--port', '0'),
  'lowrank train': (adapter: boolean, kind: Kind) =>
    command(
      adapter,
      'train',
      '--model',
      'org/model',
      '--data',
      recordsOf(kind),
      '--out',
      path.join(current.home, 'out'),
    ),
}
type Verb = keyof typeof VERBS

async function command(adapter: boolean, ...args: string[]): Promise<void> {
  const { code, stderr } = await lowrankHere(...args, ...(adapter ? ['--adapter', 'org/lora'] : []))
  if (code !== 0) throw new Error(stderr)
}

/** Files of weights that were asked for. */
function weightsSent(): string[] {
  return current.hub.loaded.filter((name) => /data$/.test(name))
}

const kinds = Object.keys(KINDS) as Kind[]
const verbs = Object.keys(VERBS) as Verb[]
const casesOf = (chosen: readonly Kind[]) => chosen.flatMap((kind) => verbs.map((verb) => [verb, kind] as const))

test.each(casesOf(Object.keys(BROKEN) as Kind[]))('%s on %s names an operator that nobody has', async (verb, kind) => {
  await publishModel(kind, true)
  const message = await messageOf(VERBS[verb](false, kind))
  const { operator } = BROKEN[kind]
  expect(message).toMatch(new RegExp(`(?<!: )${unknown(operator)}`))
  expect(message).toMatch(/another export|Export the model in another way/)
  if (operator === ATTENTION.operator) expect(message).toMatch(/model[./]layers\.0[./]attn/)
  expect(weightsSent()).toEqual([])
})

// Of an encoder-decoder, evaluate already refuses the task of this adapter.
const isOfOtherTask = (verb: Verb, kind: Kind) => /evaluate/.test(verb) && kind === 'an encoder and a decoder'

test.each(casesOf(kinds).filter(([verb, kind]) => !isOfOtherTask(verb, kind)))(
  '%s on %s names the layer of an adapter of another model',
  async (verb, kind) => {
    await publishModel(kind, false)
    const message = await messageOf(VERBS[verb](true, kind))
    expect(message).toMatch(/model\.layers\.(0|\*)\.self_attn\.q_proj/)
    expect(message).toMatch(/expected a weight of|module for/)
    expect(weightsSent()).toEqual([])
  },
)

test.each(kinds)('the weights of %s come when a session needs them', async (kind) => {
  await publishModel(kind, false)
  const session = await openSession('org/model')
  expect(weightsSent().length).toBeGreaterThan(0)
  await session.dispose()
})

/** Publishes Granite 4-h. If a module is given, an operator goes behind it, by default an unknown one. */
async function publishHybrid(
  stop?: string,
  make = (value: string, g: Builder) => g.op('com.microsoft:Unheard', [value]),
): Promise<void> {
  const files = filesOf('tests/golden/hybrids/granite_h/mobius')
  if (stop !== undefined) {
    const graph = new Graph((await loadOnnx(new MemoryDirectory(files), 'onnx/model.onnx')).proto)
    const { output } = findLinears(graph).find(({ name }) => name.endsWith(stop))!
    const g = new Builder(graph, 'unheard')
    graph.putBehind(output, (value) => make(value, g), 'known')
    files['onnx/model.onnx'] = serializeModel(graph.toModel())
  }
  current.hub.repositories.set('org/model', { files, lfs: [] })
}

test('a training that gradients reach only in part names the layers without', async () => {
  await publishHybrid('layers.1.shared_mlp.output_linear')
  const [front, behind] = ['model.layers.0.mamba.in_proj', 'model.layers.1.self_attn.o_proj']
  const given = { model: 'org/model', data: [{ text: 'a text' }] }
  const error = await train({ ...given, config: { targetModules: ['in_proj', 'out_proj', 'o_proj'] } }).catch(
    (thrown: Error) => thrown,
  )
  expect(String(error)).toMatch(/no gradient through com.microsoft:Unheard \(.*\) reaches model.layers.0.mamba.in_proj/)
  expect(error).toMatchObject({ code: 'UNSUPPORTED', hint: expect.not.stringContaining(front) })
  const adapter = new LoraAdapter({ rank: 1, targetModules: [front, behind] })
  adapter.addLayerOfShape(front, [152, 32])
  await expect(train({ ...given, adapter })).rejects.toThrow(/no gradient through com.microsoft:Unheard/)
  expect(weightsSent()).toEqual([])
})

test('openTrainer names an operator that nobody has, and that no gradient passes', async () => {
  await publishModel('a graph with other positions', true)
  expect(await messageOf(openTrainer('org/model'))).toMatch(/it does not know the operator Uns/)
  expect(weightsSent()).toEqual([])
})

test('an evaluation names the operator that it cannot compute through', async () => {
  await publishHybrid('layers.1.shared_mlp.output_linear', (value, g) => {
    const body = new Builder(g.graph.newBody(), 'body')
    const product = body.matmul('x', body.float(Array(32 * 32).fill(1), [32, 32]))
    body.graph.inputs = [valueInfo('i', DataType.INT64), valueInfo('go', DataType.BOOL), valueInfo('x', DataType.FLOAT)]
    body.graph.outputs = [valueInfo(body.op('Identity', ['go']), DataType.BOOL), valueInfo(product, DataType.FLOAT)]
    return g.op('Loop', [g.int(1), '', value], { body: body.graph.toModel().graph! })
  })
  const adapter = new LoraAdapter({ rank: 1, targetModules: ['in_proj'] })
  adapter.addLayerOfShape('model.layers.0.mamba.in_proj', [152, 32])
  // To compare the weights, they would have to be read.
  adapter.trainedOn = { graph: 'onnx/model.onnx', weights: 'other' }
  const work = evaluate({ model: 'org/model', data: [{ text: 'a text' }], adapters: { adapter } })
  expect(await messageOf(work)).toMatch(/not through Loop .*Export the model in another way/)
  expect(weightsSent()).toEqual([])
})

test('an adapter of experts for which the graph has no place is refused', async () => {
  await publishHybrid()
  const parameter = 'model.layers.0.mlp.experts.gate_weight'
  const adapter = new LoraAdapter({ rank: 1, targetModules: [], targetParameters: ['gate_weight'] })
  adapter.addExperts(parameter, [[1, 2]], [[1], [2]])
  await expect(openSession('org/model', { adapters: { adapter } })).rejects.toThrow(parameter)
  expect(weightsSent()).toEqual([])
})

test('generate refuses an encoder', async () => {
  await publishModel('an encoder and a decoder', false)
  const { files } = current.hub.repositories.get('org/model')!
  for (const name of Object.keys(files)) if (name.includes('decoder_model')) delete files[name]
  expect(await messageOf(VERBS['lowrank generate'](false))).toMatch(/it does not continue texts|encoder/)
  expect(weightsSent()).toEqual([])
})

async function messageOf(work: Promise<unknown>): Promise<string> {
  const error: Error = await work.then(
    () => expect.fail('no error'),
    (thrown) => thrown,
  )
  return error.message
}
