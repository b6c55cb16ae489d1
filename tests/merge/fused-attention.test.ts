import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { inspect, LoraAdapter, MemoryDirectory } from '../../src/api/node.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { goldenPath } from '../golden.js'
import {
  errorAtTokens,
  FUSED,
  FUSED_NORMS,
  fusedAdapter,
  fusedFeeds,
  fusedFile,
  fusedKinds,
  fusedNumbers,
  openFused,
  PLAIN,
} from '../model/fuse/fused-encoders.js'
import { inThread } from '../run/models.js'
import { some } from '../thorough.js'
import { mergeOnnx } from './toolkit.js'

async function hiddenStates(directory: MemoryDirectory, feeds: Parameters<ModelSession['run']>[0]) {
  const onnx = await loadOnnx(directory, 'model.onnx')
  const session = await ModelSession.open({ onnx, runtime: inThread }, { threads: 1 })
  const { last_hidden_state: made } = await session.run(feeds)
  await session.dispose()
  const operators = new Graph(onnx.proto).nodes.map(({ opType }) => opType)
  await onnx.close()
  return { made, operators }
}

describe.each(some([...FUSED, ...FUSED_NORMS, ...PLAIN]))('merging into $name', ({ model, name, operator }) => {
  it.each(fusedKinds(model))('%s gives PEFT’s hidden states by the same operators', async (kind) => {
    const [onnx, numbers] = [await openFused(name), await fusedNumbers(model)]
    const out = new MemoryDirectory({}, 'out')
    const adapter = await fusedAdapter(model, kind)
    const report = await mergeOnnx(onnx, adapter, out)
    const inputs = new Graph(onnx.proto).inputs.map((input) => input.name)
    const { made, operators } = await hiddenStates(out, fusedFeeds(numbers, inputs))
    expect(errorAtTokens(made, numbers, kind)).toBeLessThan(1e-5)
    expect(operators).toEqual(new Graph(onnx.proto).nodes.map(({ opType }) => opType))
    expect(operators).toContain(operator)
    expect(report.layers.map((layer) => layer.name).sort()).toEqual(
      adapter
        .parts('linear')
        .map((layer) => layer.name)
        .sort(),
    )
    await onnx.close()
  })

  it('and unmerging gives the base back, up to rounding', async () => {
    const onnx = await openFused(name)
    const adapter = await fusedAdapter(model, 'lora')
    const [merged, back] = [new MemoryDirectory({}, 'merged'), new MemoryDirectory({}, 'back')]
    await mergeOnnx(onnx, adapter, merged)
    const changed = await loadOnnx(merged, 'model.onnx')
    await mergeOnnx(changed, adapter, back, { sign: -1 })
    const numbers = await fusedNumbers(model)
    const inputs = new Graph(onnx.proto).inputs.map((input) => input.name)
    const { made } = await hiddenStates(back, fusedFeeds(numbers, inputs))
    expect(errorAtTokens(made, numbers, 'base')).toBeLessThan(1e-5)
    expect(back.files.get('model.onnx')!.length).toBe(readFileSync(fusedFile(name)).length)
    await changed.close()
    await onnx.close()
  })
})

it('inspect names the three layers of an Attention operator, and what can be done with them', async () => {
  const report = await inspect(goldenPath('fused', 'bert-attention'))
  const { linears } = report as unknown as { linears: Record<string, unknown>[] }
  expect(linears).toHaveLength(12)
  expect(linears.slice(0, 3)).toMatchObject(
    ['query', 'key', 'value'].map((part) => ({
      ...{ name: `encoder.layer.0.attention.self.${part}`, form: 'Attention', layout: 'float', d: 16, k: 16 },
      ...{ run: true, merge: ['weights'], train: true, problem: null },
    })),
  )
})

it('a bias of B of one of the three layers goes into its part of the bias', async () => {
  const [onnx, numbers] = [await openFused('bert-attention'), await fusedNumbers('bert')]
  const adapter = new LoraAdapter({ rank: 1, alpha: 1, loraBias: true })
  const zero = (rows: number, columns: number) => ({
    data: new Float32Array(rows * columns),
    shape: [rows, columns] as const,
  })
  const biasB = Float32Array.from({ length: 16 }, (_, i) => 0.1 * i)
  adapter.addFactors('encoder.layer.0.attention.self.key', zero(1, 16), zero(16, 1), { biasB })
  const out = new MemoryDirectory({}, 'out')
  await mergeOnnx(onnx, adapter, out)
  const merged = await loadOnnx(out, 'model.onnx')
  const biasOf = async (model: typeof onnx) => {
    const tensor = new Graph(model.proto).initializers.get('Attention_0_qkv_bias')!
    const bytes = await model.readTensor(tensor)
    return new Float32Array(bytes.slice().buffer)
  }
  const [before, after] = [await biasOf(onnx), await biasOf(merged)]
  after.forEach((value, i) => {
    expect(value).toBeCloseTo(before[i] + (i >= 16 && i < 32 ? biasB[i - 16] : 0), 6)
  })
  const session = await ModelSession.open({ onnx, runtime: inThread }, { adapters: { adapter }, threads: 1 })
  const feeds = fusedFeeds(numbers, session.inputNames)
  const { last_hidden_state: beside } = await session.run(feeds, { adapter: 'adapter' })
  const { made } = await hiddenStates(out, feeds)
  ;(made.data as Float32Array).forEach((value, i) => {
    expect(Math.abs(value - (beside.data[i] as number))).toBeLessThan(1e-5)
  })
  await session.dispose()
  await merged.close()
  await onnx.close()
})
