// Weights in float16 that a Cast converts to float32 before they are used, as ONNX converters write them.

import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type LoraConfigInput, loadModel, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { readAll, withSource } from '../../../src/core/base/bytes.js'
import { decodeFloats, encodeFloats } from '../../../src/core/base/dtype.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { merge } from '../../../src/merge/merge.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { serializeModel } from '../../../src/onnx/format/model.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import { DataType, dimsOf, TensorProtoSchema } from '../../../src/onnx/format/tensors.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { train } from '../../../src/train/train.js'
import { some } from '../../thorough.js'

const runtime = { module: ort }
const names = ['llama-optimum', 'gpt2-optimum'] as const
const models = new Map<string, { cast: Model; plain: Model }>()

/** Rounds a model's weights to float16, and stores them as float16 with a Cast, or as the same numbers in float32. */
async function rounded(name: string, isCast: boolean): Promise<Model> {
  const directory = new NodeDirectory(`tests/golden/models/${name}`)
  const { onnx } = await loadModel(directory, { runtime })
  const graph = new Graph(onnx.proto)
  const g = new Builder(graph, 'cast')
  for (const [value, tensor] of [...graph.initializers]) {
    if (tensor.dataType !== DataType.FLOAT) continue
    const half = encodeFloats(decodeFloats(await onnx.readTensor(tensor), 'fp32'), 'fp16')
    const dims = dimsOf(tensor).map(BigInt)
    if (!isCast) {
      const rawData = encodeFloats(decodeFloats(half, 'fp16'), 'fp32')
      graph.addInitializer(create(TensorProtoSchema, { name: value, dataType: DataType.FLOAT, dims, rawData }))
      continue
    }
    const cast = g.node('Cast', [value], { to: DataType.FLOAT })
    graph.replaceUses(value, cast.output[0])
    graph.setInputs(cast, [value])
    graph.addInitializer(create(TensorProtoSchema, { name: value, dataType: DataType.FLOAT16, dims, rawData: half }))
  }
  const files = await Promise.all(
    (await directory.list())
      .filter((file) => file.endsWith('.json'))
      .map(async (file) => [file, await withSource(directory, file, readAll)] as const),
  )
  await onnx.close()
  const own = Object.fromEntries([...files, ['onnx/model.onnx', serializeModel(graph.toModel())]])
  return loadModel(new MemoryDirectory(own, name), { runtime })
}

beforeAll(async () => {
  for (const name of names) models.set(name, { cast: await rounded(name, true), plain: await rounded(name, false) })
})
afterAll(async () => {
  for (const { cast, plain } of models.values()) await Promise.all([cast.close(), plain.close()])
})

const feeds = { input_ids: { type: 'int64', data: BigInt64Array.of(1n, 3n, 5n, 2n), dims: [1, 4] } } as const
const deviation = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Math.max(...Array.from(a, (value, i) => Math.abs(value - b[i])))

async function logitsOf(model: Model, adapters: object) {
  const session = await ModelSession.open(model, { adapters: adapters as never, threads: 1 })
  const { logits } = await session.run(feeds, { adapter: Object.keys(adapters)[0] ?? null })
  await session.dispose()
  return logits.data as Float32Array
}

describe.each(some(names, 2))('%s', (name) => {
  it('has its layers, by the names that they have without the casts', () => {
    const [cast, plain] = [models.get(name)!.cast, models.get(name)!.plain].map(({ onnx }) =>
      findLinears(new Graph(onnx.proto)).map((linear) => [linear.name, linear.d, linear.k, linear.dataType]),
    )
    expect(cast).toEqual(plain)
  })

  const config: LoraConfigInput = name.startsWith('gpt2')
    ? { targetModules: ['c_attn'], modulesToSave: ['wte'], bias: 'lora_only' }
    : { useDora: true, modulesToSave: ['norm'] }
  it('is trained, run and merged as without the casts', async () => {
    const { cast, plain } = models.get(name)!
    const runs = await Promise.all(
      [cast, plain].map((model) =>
        train({
          ...{ model, config, out: new MemoryDirectory(), maxSteps: 2, batchSize: 2, learningRate: 1e-2, threads: 1 },
          data: [{ text: 'In the beginning' }, { text: 'And God said' }],
        }),
      ),
    )
    expect(deviation(runs[0].report.trainLoss, runs[1].report.trainLoss)).toBeLessThan(1e-4)
    const { adapter } = runs[0]
    const [own, wanted] = [await logitsOf(cast, { adapter }), await logitsOf(plain, { adapter })]
    expect(deviation(own, wanted)).toBeLessThan(1e-4)
    expect(deviation(own, await logitsOf(cast, {}))).toBeGreaterThan(0.1)
    const out = new MemoryDirectory()
    await merge({ base: { directory: cast.directory }, adapters: adapter, out })
    const merged = await loadModel(out, { runtime })
    // The merged weights are rounded to float16.
    expect(deviation(await logitsOf(merged, {}), own)).toBeLessThan(0.02)
    await merged.close()
  })
})
