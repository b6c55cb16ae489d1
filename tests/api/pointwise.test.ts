// Linear layers that an exporter wrote as convolutions of kernel 1: sessions, merges and inspect, against PEFT's
// outputs for adapters of the linear layers (tests/golden/pointwise), and training against PyTorch's gradients.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import {
  type Feeds,
  inspect,
  loadAdapter,
  MemoryDirectory,
  type Model,
  type RuntimeTensor,
} from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { viewOf } from '../../src/model/match/forms/integers.js'
import { findLinears } from '../../src/model/match/linears.js'
import { TensorProto_DataType as DataType } from '../../src/onnx/format/gen/onnx_pb.js'
import { loadOnnx, OnnxModel } from '../../src/onnx/format/model.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { squaresOfRows } from '../../src/train/engine/dora.js'
import { readParameters } from '../../src/train/engine/parameters.js'
import type { Objective } from '../../src/train/graph/objective-graph.js'
import { buildTrainingGraph } from '../../src/train/graph/training-graph.js'
import { train } from '../../src/train/train.js'
import { deviation, goldenPath } from '../golden.js'
import { mergeOnnx } from '../merge/toolkit.js'
import { layersOf, relativeError, transposed } from '../model/golden.js'
import { inThread, openModel } from '../run/models.js'

const runtime = await loadNodeRuntime()
const folder = new NodeDirectory(goldenPath('pointwise'))
const outputs = await parseSafetensorsHeader(
  new MemorySource(readFileSync(goldenPath('pointwise', 'outputs.safetensors'))),
)
const expected = async (name: string) => (await readTensorF32(outputs, name)).data
const feeds: Feeds = { x: { type: 'float32', data: await expected('x'), dims: [2, 5, 12] } }
const adapterOf = (name: string) => loadAdapter(goldenPath('pointwise', name))
const CASES = ['linear', 'dora', 'lora-bias']

describe.each(['conv1d', 'conv2d'])('%s', (file) => {
  it('gives PEFT’s outputs in a session, whichever adapter a row has', async () => {
    const onnx = await loadOnnx(folder, `${file}.onnx`)
    const adapters = Object.fromEntries(await Promise.all(CASES.map(async (name) => [name, await adapterOf(name)])))
    const session = await ModelSession.open({ onnx, runtime: inThread }, { adapters })
    const half = 5 * 7
    for (const name of CASES) {
      const whole = await session.run(feeds, { adapter: name })
      expect(deviation(whole.y.data as Float32Array, await expected(name)), name).toBeLessThan(1e-5)
      const mixed = await session.run(feeds, { adapter: [name, null] })
      const rows = [...(await expected(name)).subarray(0, half), ...(await expected('base')).subarray(half)]
      expect(deviation(mixed.y.data as Float32Array, rows), name).toBeLessThan(1e-5)
    }
    await session.dispose()
    await onnx.close()
  })

  it.each(CASES)('%s: gives PEFT’s outputs merged, and the base’s unmerged', async (name) => {
    const [base, out, back] = [await loadOnnx(folder, `${file}.onnx`), new MemoryDirectory(), new MemoryDirectory()]
    const report = await mergeOnnx(base, await adapterOf(name), out)
    expect(report.changed).toBeGreaterThan(2)
    expect(deviation(await outputOf(out, file), await expected(name))).toBeLessThan(1e-5)
    await base.close()
    if (name !== 'dora') {
      const merged = await loadOnnx(out, `${file}.onnx`)
      await mergeOnnx(merged, await adapterOf(name), back, { sign: -1 })
      expect(deviation(await outputOf(back, file), await expected('base'))).toBeLessThan(1e-5)
    }
  })

  it('has its layers in inspect, with what can be done', async () => {
    const report = await inspect(goldenPath('pointwise', `${file}.onnx`))
    if (report.kind !== 'onnx') throw new Error(report.kind)
    const up = report.linears.find(({ name }) => name === 'blocks.0.up')
    expect(up).toMatchObject({ form: 'Conv', d: 20, k: 12, run: true, merge: ['weights'], train: true })
    expect(report.linears.map(({ name }) => name).sort()).toEqual(
      ['blocks.0', 'blocks.1']
        .flatMap((block) => ['down', 'query', 'up'].map((name) => `${block}.${name}`))
        .concat('out'),
    )
  })
})

/** The loss Σ g · y, for which golden gradients exist. */
const weightedSum: Objective = {
  probe: {
    feeds: [
      { x: zeros(2, 3, 12), g: zeros(2, 3, 7) },
      { x: zeros(5, 8, 12), g: zeros(5, 8, 7) },
    ],
    lengths: [
      { name: 'batch', probed: [2, 5], of: (run) => run.x.dims[0], source: { input: 'x', axis: 0 } },
      { name: 'sequence', probed: [3, 8], of: (run) => run.x.dims[1], source: { input: 'x', axis: 1 } },
      { name: 'rows', probed: [6, 40], of: (run) => run.x.dims[0] * run.x.dims[1] },
    ],
  },
  forward(graph) {
    const g = graph.input('g', DataType.FLOAT, ['batch', 'sequence', 7])
    return graph.g.op('ReduceSum', [graph.g.mul('y', g)], { keepdims: 0 })
  },
}

function zeros(...dims: number[]) {
  return { type: 'float32', data: new Float32Array(dims.reduce((product, dim) => product * dim, 1)), dims } as const
}

describe.each(['conv1d', 'conv2d'])('training on %s', (file) => {
  it.each(['linear', 'dora'])('gives PyTorch’s gradients of %s', async (name) => {
    const [onnx, adapter] = [await loadOnnx(folder, `${file}.onnx`), await adapterOf(name)]
    const squares = await squaresOfRows({ onnx } as Model, name === 'dora' ? layersOf(adapter) : [], undefined)
    const layers = layersOf(adapter).map((layer) => ({ ...layer, baseSquares: squares.get(layer.name) }))
    const training = await buildTrainingGraph(onnx, runtime, weightedSum, { layers })
    const session = await runtime.createSession(await training.sessionModel(), { threads: 1 })
    const names = training.parameters.map((parameter) => parameter.name)
    const values = readParameters(adapter, names)
    const trained = training.parameters.map(({ input, shape }, i): [string, RuntimeTensor] => {
      return [input, { type: 'float32', data: values[i], dims: shape }]
    })
    const own: Feeds = { ...feeds, g: { type: 'float32', data: await expected('g'), dims: [2, 5, 7] } }
    const made = await session.run({ ...training.feeds(own, { normalizer: 1 }), ...Object.fromEntries(trained) })
    const wanted = [...outputs.tensors.keys()].filter((key) => key.startsWith(`gradient/${name}/`))
    expect(training.parameters).toHaveLength(wanted.length)
    for (const { name: parameter, gradient } of training.parameters) {
      const [, module, role] = /^(.*)\.([^.]*)$/.exec(parameter)!
      const suffix = { A: 'lora_A', B: 'lora_B' }[role] ?? 'lora_magnitude_vector'
      const { data, shape } = await readTensorF32(
        outputs,
        `gradient/${name}/base_model.model.${module}.${suffix}.weight`,
      )
      const theirs = role === 'B' ? transposed(data, shape) : data
      expect(relativeError(made[gradient].data as Float32Array, theirs), parameter).toBeLessThan(1e-5)
    }
    await session.dispose()
    await onnx.close()
  })
})

describe('training', () => {
  const name = 'model.layers.0.self_attn.k_proj'

  /** Makes a Llama in which a linear layer is a convolution. */
  async function llama(isCast: boolean): Promise<Model> {
    const read = await openModel('tests/golden/models/llama-optimum')
    const graph = new Graph(read.onnx.proto)
    const { node, weight, k, d } = findLinears(graph).find((linear) => linear.name === name)!
    const g = new Builder(graph, '/model/layers.0/self_attn/k_proj')
    const [channels, stored] = [g.transpose(node.input[0], [0, 2, 1]), viewOf(graph, weight, { dims: [d, k, 1] })]
    const kernel = isCast ? g.cast(stored, DataType.FLOAT) : stored
    const [output] = node.output
    graph.remove(node)
    graph.setOutput(g.node('Transpose', [g.op('Conv', [channels, kernel])], { perm: [0, 2, 1] }), 0, output)
    const { name: place, fileName, files } = read.onnx
    return { ...read, onnx: new OnnxModel(place, fileName, graph.toModel(), files) }
  }

  async function trained(targetModules: string | string[], isCast = false) {
    const model = await llama(isCast)
    const warnings: string[] = []
    const { adapter, report } = await train({
      ...{ model, data: [{ text: 'In the beginning' }], maxSteps: 2, warmupRatio: 0, threads: 1 },
      config: { rank: 2, targetModules },
      on: { warning: (message) => void warnings.push(message) },
    })
    await model.onnx.close()
    return { adapter, report, warnings: warnings.filter((message) => message.includes('kernel 1')) }
  }

  it('adapts such a layer where the targets name it, and says how PEFT can read it', async () => {
    const { adapter, report, warnings } = await trained(['q_proj', 'k_proj'])
    expect(adapter.names()).toContain(name)
    expect(warnings).toEqual([expect.stringMatching(/k_proj as linear layers.*only if the model has nn\.Linear/)])
    expect(report.trainLoss[1]).toBeLessThan(report.trainLoss[0])
    expect(adapter.get(name, 'linear')!.weightB.data.some((value) => value !== 0)).toBe(true)
    // Models in half precision are trained in this form.
    const { report: cast } = await trained(['q_proj', 'k_proj'], true)
    expect(cast.trainLoss).toEqual(report.trainLoss)
  })

  it('leaves it out of all-linear, and says so', async () => {
    const { adapter, warnings } = await trained('all-linear')
    expect(adapter.names()).not.toContain(name)
    expect(warnings).toEqual([expect.stringMatching(/^all-linear leaves out model\.layers\.0\.self_attn\.k_proj/)])
  })
})

async function outputOf(directory: MemoryDirectory, file: string): Promise<Float32Array> {
  const onnx = await loadOnnx(directory, `${file}.onnx`)
  const session = await ModelSession.open({ onnx, runtime: inThread })
  const { y } = await session.run(feeds)
  await session.dispose()
  await onnx.close()
  return y.data as Float32Array
}
