import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/api/node.js'
import { findLinears } from '../../src/model/match/linears.js'
import { matchTargets } from '../../src/model/match/match.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { checkTrainableForm } from '../../src/train/graph/trainable-form.js'
import { mergeOnnx } from '../merge/toolkit.js'
import {
  errorAtTokens,
  FUSED,
  FUSED_NORMS,
  fusedAdapter,
  fusedFeeds,
  fusedKinds,
  fusedNumbers,
  openFused,
  PLAIN,
} from '../model/fuse/fused-encoders.js'
import { some } from '../thorough.js'
import { inThread } from './models.js'

describe.each(some([...FUSED, ...FUSED_NORMS, ...PLAIN], 2))('a session on $name', ({ model, name }) => {
  it('gives PEFT’s hidden states, with each kind of adapter, alone and in one batch', async () => {
    const [onnx, numbers] = [await openFused(name), await fusedNumbers(model)]
    const kinds = fusedKinds(model)
    const adapters = Object.fromEntries(
      await Promise.all(kinds.map(async (kind) => [kind, await fusedAdapter(model, kind)])),
    )
    const session = await ModelSession.open({ onnx, runtime: inThread }, { adapters, threads: 1 })
    const feeds = fusedFeeds(numbers, session.inputNames)
    for (const adapter of [null, ...kinds]) {
      const { last_hidden_state: made } = await session.run(feeds, { adapter })
      expect(errorAtTokens(made, numbers, adapter ?? 'base'), `${adapter}`).toBeLessThan(1e-5)
    }
    const mixed = await session.run(feeds, { adapter: [null, 'lora', null] })
    const alone = await session.run(feeds, { adapter: 'lora' })
    const size = mixed.last_hidden_state.data.length / 3
    const row = (made: typeof mixed) => (made.last_hidden_state.data as Float32Array).slice(size, 2 * size)
    row(mixed).forEach((value, i) => void expect(Math.abs(value - row(alone)[i])).toBeLessThan(1e-5))
    await session.dispose()
    await onnx.close()
  })
})

describe('layers in an Attention operator', () => {
  const graphOf = async (name: string) => {
    const onnx = await openFused(name)
    const graph = new Graph(onnx.proto)
    await onnx.close()
    return graph
  }

  it.each([
    ['bert-attention', 'encoder.layer.1.attention.self', ['query', 'key', 'value']],
    ['roberta-attention', 'encoder.layer.1.attention.self', ['query', 'key', 'value']],
    ['distilbert-attention', 'transformer.layer.1.attention', ['q_lin', 'k_lin', 'v_lin']],
  ])('have their modules’ names in %s', async (name, module, parts) => {
    const linears = findLinears(await graphOf(name)).filter(({ form }) => form.name === 'Attention')
    const own = linears.filter((linear) => linear.name.startsWith(module))
    expect(own.map((linear) => [linear.name, linear.k, linear.d, linear.fused?.start])).toEqual(
      parts.map((part, i) => [`${module}.${part}`, 16, 16, 16 * i]),
    )
    expect(linears).toHaveLength(6)
    const targets = matchTargets(findLinears(await graphOf(name)), { targetModules: 'all-linear' })
    expect(targets).toHaveLength(12)
  })

  it('have the names of the caller’s map where the graph tells none', async () => {
    const graph = await graphOf('bert-attention')
    for (const node of graph.nodes) {
      node.input = node.input.map((value) => value.replaceAll('/', '_'))
      node.output = node.output.map((value) => value.replaceAll('/', '_'))
    }
    graph.invalidate()
    const names = (map = {}) =>
      findLinears(graph, map).flatMap(({ name, form }) => (form.name === 'Attention' ? [name] : []))
    expect(names()[0]).toBe('Attention_0.query')
    expect(names({ 'encoder.layer.0.attention.self': 'Attention_0' }).slice(0, 4)).toEqual([
      'encoder.layer.0.attention.self.query',
      'encoder.layer.0.attention.self.key',
      'encoder.layer.0.attention.self.value',
      'Attention_1.query',
    ])
  })
})

describe('attention in int8', () => {
  it('is refused by name with what to do, and the other layers run', async () => {
    const onnx = await openFused('bert-int8')
    const adapter = await fusedAdapter('bert', 'lora')
    const base = { onnx, runtime: inThread }
    await expect(ModelSession.open(base, { adapters: { adapter } })).rejects.toThrow(
      /encoder\.layer\.0\.attention\.self\.\w+: .*QAttention.*op_types_to_quantize/,
    )
    const graph = new Graph(onnx.proto)
    await expect(mergeOnnx(onnx, adapter, new MemoryDirectory())).rejects.toThrow(/QAttention/)
    expect(() => checkTrainableForm(graph)).toThrow(
      /not through QAttention \(.*the adapter runs there, but not on this one/,
    )
    const others = adapter.only(new Set(adapter.names().filter((name) => !/self/.test(name))))
    const session = await ModelSession.open(base, { adapters: { others }, threads: 1 })
    const numbers = await fusedNumbers('bert')
    const feeds = fusedFeeds(numbers, session.inputNames)
    const { last_hidden_state: own } = await session.run(feeds, { adapter: 'others' })
    const { last_hidden_state: without } = await session.run(feeds)
    expect(own.data).not.toEqual(without.data)
    await session.dispose()
    await onnx.close()
  })
})
