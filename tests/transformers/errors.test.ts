// What pipelines with adapters refuse, without transformers.js.

import { ConfigError, RuntimeError, UnsupportedError } from 'lowrank'
import { pipelineWithAdapters, withAdapters } from 'lowrank/transformers'
import { describe, expect, it } from 'vitest'
import { UnsupportedError as SourceError } from '../../src/base/errors.js'
import { Graph } from '../../src/graph/view/graph.js'
import { paddingPlan } from '../../src/transformers/padding.js'
import { openModel } from '../infer/models.js'

const UNION = 'models/union-3m'

describe('pipelines with adapters', () => {
  it('say what is missing or misspelled', async () => {
    const open = (task: string, options?: object) => pipelineWithAdapters(task as never, UNION, options)
    await expect(open('text-generaton')).rejects.toThrow(/Did you mean text-generation\?/)
    await expect(open('fill-mask')).rejects.toThrow(UnsupportedError)
    await expect(open('text-generation', { adaptor: {} })).rejects.toThrow(/Did you mean adapters\?/)
    await expect(open('text-generation', { transformers: {} })).rejects.toThrow(ConfigError)
    await expect(withAdapters({} as never, { source: UNION })).rejects.toThrow(/^pipeline: not usable/)
    const pictures = Object.assign(async () => {}, { task: 'image-classification' })
    await expect(withAdapters(pictures, { source: UNION })).rejects.toThrow(/Call pipelineWithAdapters\('image-classif/)
  })

  it('say that the package is not installed', async () => {
    const call = pipelineWithAdapters('text-generation', UNION)
    await expect(call).rejects.toThrow(RuntimeError)
    await expect(call).rejects.toThrow(/npm install @huggingface\/transformers/)
  })
})

describe('rows that are filled up on the left', () => {
  const feeds = (...mask: bigint[]) => ({
    attention_mask: { type: 'int64' as const, data: BigInt64Array.from(mask), dims: [1, mask.length] },
  })

  it('get a bias where GroupQueryAttention takes one, and are refused elsewhere', async () => {
    const model = await openModel('tests/golden/models/llama-genai')
    const graph = new Graph(model.onnx.proto)
    const attention = () => graph.nodes.filter(({ opType }) => opType === 'GroupQueryAttention')
    expect(attention().every(({ input }) => !input[10])).toBe(true)
    const onGpu = paddingPlan(graph, 'webgpu')
    expect(() => onGpu.check(feeds(1n, 1n))).not.toThrow()
    expect(() => onGpu.check(feeds(0n, 1n))).toThrow(SourceError)
    const plan = paddingPlan(graph, 'cpu')
    expect(() => plan.check(feeds(0n, 1n))).not.toThrow()
    plan.edit!(graph)
    expect(attention().length).toBeGreaterThan(0)
    expect(attention().every(({ input }) => input[10])).toBe(true)
    await model.close()
  })

  it('leave other graphs as they are', async () => {
    const model = await openModel('tests/golden/models/llama-optimum')
    const { edit, check } = paddingPlan(new Graph(model.onnx.proto), 'webgpu')
    expect(edit).toBeUndefined()
    expect(() => check(feeds(0n, 1n))).not.toThrow()
    await model.close()
  })
})
