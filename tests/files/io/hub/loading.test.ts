// How models, checkpoints and adapters come from a Hub that answers slowly: with few requests, several at once.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { stripVTControlCharacters } from 'node:util'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { configureHub, inspect, loadAdapter, loadModel, merge, planMerge } from '../../../../src/api/node.js'
import { showDownloads } from '../../../../src/app/cli/show/terminal.js'
import { concatBytes, MemoryDirectory, writeThrough } from '../../../../src/core/base/bytes.js'
import { openCheckpoint } from '../../../../src/files/checkpoint.js'
import { writeSafetensors } from '../../../../src/files/safetensors.js'
import { GraphProtoSchema, ModelProtoSchema, TensorProtoSchema } from '../../../../src/onnx/format/gen/onnx_pb.js'
import { mapTensors } from '../../../../src/onnx/format/messages.js'
import { loadOnnx, serializeModel } from '../../../../src/onnx/format/model.js'
import { create } from '../../../../src/onnx/format/protobuf.js'
import { DataType, externalTensor, isExternal, weightRange } from '../../../../src/onnx/format/tensors.js'
import { golden, MODEL, publish } from './publish.js'
import type { Seen } from './server.js'
import { current, text, useHub } from './toolkit.js'

useHub()

const outer = { ...process.env }

beforeEach(() => {
  process.env.HF_HOME = current.home
  process.env.HF_ENDPOINT = current.hub.endpoint
  current.hub.delayMs = 25
})

afterEach(() => {
  configureHub({ on: undefined })
  process.env = { ...outer }
  vi.restoreAllMocks()
})

/** The bundled model with 218 more weights, which nothing reads. */
function inOneFile(): Uint8Array {
  const initializer = Array.from({ length: 218 }, (_, i) => {
    const rawData = new Uint8Array(20_000).fill(i)
    return create(TensorProtoSchema, { name: `more.${i}`, dataType: DataType.UINT8, dims: [20_000n], rawData })
  })
  const graph = create(GraphProtoSchema, { initializer })
  return concatBytes([
    readFileSync(path.join(MODEL, 'onnx/model.onnx')),
    serializeModel(create(ModelProtoSchema, { graph })),
  ])
}

/** The bundled model with its weights in two files. */
async function inThreeFiles(): Promise<Record<string, Uint8Array>> {
  const whole = readFileSync(path.join(MODEL, 'onnx/model.onnx'))
  const { proto } = await loadOnnx(new MemoryDirectory({ 'model.onnx': whole }), 'model.onnx')
  let count = 0
  const changed = mapTensors(proto, (tensor) => {
    if (!isExternal(tensor)) return tensor
    return externalTensor(tensor, { ...weightRange(tensor, ''), location: `model.onnx_data${count++ % 2}` })
  })
  const other = concatBytes([whole, new Uint8Array(8)])
  const beside = { 'onnx/model.onnx_data0': whole, 'onnx/model.onnx_data1': other }
  return { 'onnx/model.onnx': serializeModel(changed), ...beside }
}

/** The bundled checkpoint in three shards. */
async function inShards(): Promise<Record<string, Uint8Array>> {
  const whole = new MemoryDirectory({ 'model.safetensors': readFileSync(path.join(MODEL, 'model.safetensors')) })
  const { tensors, shards } = await openCheckpoint(whole)
  const weights: Record<string, string> = {}
  const files: Record<string, Uint8Array> = {}
  for (const [i, name] of ['a.safetensors', 'b.safetensors', 'c.safetensors'].entries()) {
    const chosen = [...tensors.values()].filter((_, at) => at % 3 === i).map(({ info }) => info)
    const read = chosen.map(async (info) => {
      return { ...info, data: await shards[0].file.source.read(info.offset, info.byteLength) }
    })
    const shard = new MemoryDirectory()
    const all = await Promise.all(read)
    await writeThrough(shard, name, (sink) => writeSafetensors(sink, all))
    for (const info of chosen) weights[info.name] = name
    files[name] = shard.files.get(name)!
  }
  return { ...files, 'model.safetensors.index.json': text(JSON.stringify({ metadata: {}, weight_map: weights })) }
}

const ONNX = { 'one .onnx file': () => ({ 'onnx/model.onnx': inOneFile() }), 'a graph and its weights': inThreeFiles }
const CHECKPOINT = { 'one checkpoint': () => ({}), 'three shards': inShards }

const graph = 'hf:org/model/onnx/model.onnx'
const mergeInto = (base: string, out: string | MemoryDirectory) => merge({ base, adapters: 'org/lora', out })
const onnxWays = {
  'loading a model': async () => {
    const model = await loadModel('org/model')
    await model.onnx.fetch()
    await model.close()
  },
  'inspecting a graph': () => inspect(graph),
  'merging into a graph': (out: string) => mergeInto(graph, `${out}.onnx`),
  'merging into a graph in memory': () => mergeInto(graph, new MemoryDirectory()),
  'planning a merged graph': (out: string) => planMerge({ base: graph, adapters: 'org/lora', out: `${out}.onnx` }),
}
const checkpointWays = {
  'inspecting a checkpoint': () => inspect('org/model'),
  'merging into a checkpoint': (out: string) => mergeInto('org/model', out),
  'merging into a checkpoint in memory': () => mergeInto('org/model', new MemoryDirectory()),
  'planning a merge': (out: string) => planMerge({ base: 'org/model', adapters: 'org/lora', out }),
  'loading an adapter': () => loadAdapter('org/lora'),
}
type Files = Record<string, Uint8Array>
type Way = (out: string) => Promise<unknown>
const casesOf = (models: Record<string, () => Files | Promise<Files>>, ways: Record<string, Way>) =>
  Object.entries(ways).flatMap(([way, work]) =>
    Object.entries(models).map(([kind, files]) => ({ way, kind, work, files })),
  )

async function publishAll(files: Files, isCheckpoint: boolean): Promise<void> {
  const left = isCheckpoint ? ['onnx/model.onnx'] : []
  if ('model.safetensors.index.json' in files) left.push('model.safetensors')
  publish(current.hub, 'org/model', MODEL, files)
  publish(current.hub, 'org/lora', golden('f32'))
  for (const name of left) delete current.hub.repositories.get('org/model')!.files[name]
}

/** What was asked for. The second request of a redirect does not count. */
function questions(): string[] {
  const { seen } = current.hub
  const isSecond = ({ origin, path: url, range }: Seen, i: number) => {
    const name = (of: string) =>
      of
        .split('/')
        .at(-1)!
        .replace(/\?.*/, '')
        .replace(/^.*%2F/, '')
    const isAsked = (one: Seen) => one.origin === 'hub' && name(one.path) === name(url) && one.range === range
    return url.startsWith('/api/resolve-cache') || (origin === 'storage' && seen.slice(0, i).some(isAsked))
  }
  return seen.filter((one, i) => !isSecond(one, i)).map(({ path: url, range = '' }) => `${url} ${range}`)
}

const WEIGHTS = /(model\.onnx|\.onnx_data.|\.safetensors)[? ]/

test.each([
  ...casesOf(ONNX, onnxWays).map((one) => ({ ...one, isCheckpoint: false })),
  ...casesOf(CHECKPOINT, checkpointWays).map((one) => ({ ...one, isCheckpoint: true })),
])('$way takes few requests: $kind', async ({ work, files, isCheckpoint, kind, way }) => {
  await publishAll(await files(), isCheckpoint)
  await work(path.join(current.home, 'out'))
  const asked = questions()
  const weights = asked.filter((question) => WEIGHTS.test(question))
  expect(asked.findIndex((question) => WEIGHTS.test(question))).toBeLessThan(10)
  expect(asked.length - weights.length).toBeLessThan(12)
  // A merge into memory reads the weights in parts, and keeps none of them.
  if (!way.endsWith('memory')) expect(weights.length).toBeLessThanOrEqual(4)
  if (way === 'loading a model' || (kind === 'three shards' && !way.endsWith('adapter')))
    expect(current.hub.mostAtOnce).toBeGreaterThan(1)
})

test('the bar counts all files that come, from the first bytes to the last', async () => {
  const { isTTY } = process.stderr
  let written = ''
  vi.spyOn(process.stderr, 'write').mockImplementation((shown) => {
    written += shown
    return true
  })
  process.stderr.isTTY = true
  try {
    configureHub({ on: { download: showDownloads() } })
    await publishAll(await inThreeFiles(), false)
    for (const name of ['0', '1'])
      current.hub.faults.set(`onnx/model.onnx_data${name}`, { pauseMs: 40, pieceBytes: 2 ** 20 })
    await onnxWays['loading a model']()
  } finally {
    process.stderr.isTTY = isTTY
  }
  const bars = [...stripVTControlCharacters(written).matchAll(/([\d.]+)\/([\d.]+) MB/g)].map(([, ...found]) =>
    found.map(Number),
  )
  const both = bars.filter(([, total]) => total === 24).map(([done]) => done)
  expect(both.length).toBeGreaterThan(3)
  expect(both).toEqual(both.toSorted((a, b) => a - b))
  expect(both.at(-1)).toBe(24)
  expect(new Set(both).size).toBeGreaterThan(3)
})
