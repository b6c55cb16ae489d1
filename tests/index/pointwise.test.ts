// Linear layers that an exporter wrote as convolutions of kernel 1: sessions, merges and inspect, against PEFT's outputs for adapters of the
// linear layers (tests/golden/pointwise), and the refusals of training.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { MemoryDirectory, MemorySource } from '../../src/base/bytes.js'
import { UnsupportedError } from '../../src/base/errors.js'
import { loadOnnx, OnnxModel } from '../../src/formats/onnx/model.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/formats/safetensors.js'
import { viewOf } from '../../src/graph/match/forms/integers.js'
import { findLinears } from '../../src/graph/match/linears.js'
import { Builder } from '../../src/graph/view/builder.js'
import { Graph } from '../../src/graph/view/graph.js'
import { OnnxSession } from '../../src/infer/adapter-session.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import { mergeOnnx } from '../../src/merge/onnx/merge-onnx.js'
import { inspect } from '../../src/node.js'
import { loadAdapter } from '../../src/peft/adapter-folder.js'
import type { Feeds } from '../../src/runtime/runtime.js'
import { train } from '../../src/train/train.js'
import { deviation, goldenPath } from '../golden.js'
import { inThread, openModel } from '../infer/models.js'

const folder = new NodeDirectory(goldenPath('pointwise'))
const outputs = await parseSafetensorsHeader(
  new MemorySource(readFileSync(goldenPath('pointwise', 'outputs.safetensors'))),
)
const expected = async (name: string) => (await readTensorF32(outputs, name)).data
const feeds: Feeds = { x: { type: 'float32', data: await expected('x'), dims: [2, 5, 12] } }
const adapterOf = (name: string) => loadAdapter(new NodeDirectory(goldenPath('pointwise', name)))
const CASES = ['linear', 'dora', 'lora-bias']

describe.each(['conv1d', 'conv2d'])('%s', (file) => {
  it('gives PEFT’s outputs in a session, whichever adapter a row has', async () => {
    const onnx = await loadOnnx(folder, `${file}.onnx`)
    const adapters = Object.fromEntries(await Promise.all(CASES.map(async (name) => [name, await adapterOf(name)])))
    const session = await OnnxSession.open({ onnx, runtime: inThread }, { adapters })
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
      await mergeOnnx(merged, await adapterOf(name), back, {}, -1)
      expect(deviation(await outputOf(back, file), await expected('base'))).toBeLessThan(1e-5)
    }
  })

  it('has its layers in inspect, with what can be done', async () => {
    const report = await inspect(goldenPath('pointwise', `${file}.onnx`))
    if (report.kind !== 'onnx') throw new Error(report.kind)
    const up = report.linears.find(({ name }) => name === 'blocks.0.up')
    expect(up).toMatchObject({ form: 'Conv', d: 20, k: 12, run: true, merge: ['weights'], train: false })
    expect(report.linears.map(({ name }) => name).sort()).toEqual(
      ['blocks.0', 'blocks.1']
        .flatMap((block) => ['down', 'query', 'up'].map((name) => `${block}.${name}`))
        .concat('out'),
    )
  })
})

describe('training', () => {
  it('refuses such a layer by its name, in a new adapter and in a loaded one, before anything is written', async () => {
    const read = await openModel('tests/golden/models/llama-optimum')
    const graph = new Graph(read.onnx.proto)
    const name = 'model.layers.0.self_attn.k_proj'
    const { node, weight, k, d } = findLinears(graph).find((linear) => linear.name === name)!
    const g = new Builder(graph, '/model/layers.0/self_attn/k_proj')
    const [channels, kernel] = [g.transpose(node.input[0], [0, 2, 1]), viewOf(graph, weight, { dims: [d, k, 1] })]
    const [output] = node.output
    graph.remove(node)
    graph.setOutput(g.node('Transpose', [g.op('Conv', [channels, kernel])], { perm: [0, 2, 1] }), 0, output)
    const { name: place, fileName, files } = read.onnx
    const model = { ...read, onnx: new OnnxModel(place, fileName, graph.toModel(), files) }
    const adapter = new LoraAdapter({ rank: 2 })
    adapter.addFactors(
      name,
      { data: new Float32Array(2 * k), shape: [2, k] },
      { data: new Float32Array(d * 2), shape: [d, 2] },
    )
    for (const chosen of [{ adapter }, { config: { targetModules: ['q_proj', 'k_proj'] } }]) {
      const out = new MemoryDirectory()
      const training = train({ model, data: [{ text: 'In the beginning' }], maxSteps: 1, threads: 1, out, ...chosen })
      await expect(training).rejects.toThrow(UnsupportedError)
      await expect(training).rejects.toThrow(/k_proj: the graph computes it as a convolution of kernel 1.*\(Conv\)/)
      expect(out.files.size).toBe(0)
    }
    await read.onnx.close()
  })
})

async function outputOf(directory: MemoryDirectory, file: string): Promise<Float32Array> {
  const onnx = await loadOnnx(directory, `${file}.onnx`)
  const session = await OnnxSession.open({ onnx, runtime: inThread })
  const { y } = await session.run(feeds)
  await session.dispose()
  await onnx.close()
  return y.data as Float32Array
}
