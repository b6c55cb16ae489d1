// Errors of pipelines with adapters, tested without transformers.js.

import { ConfigError, RuntimeError, UnsupportedError } from 'lowrank'
import { pipelineWithAdapters } from 'lowrank/transformers'
import { afterAll, describe, expect, it } from 'vitest'
import { UnsupportedError as SourceError } from '../../../src/api/node.js'
import type { PipelineInstance, PreTrainedModel } from '../../../src/app/transformers/module.js'
import { adapterPipeline, openShared, paddingPlan } from '../../../src/app/transformers/pipelines.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { feedsOf, makeAdapter, maxDifference, openModel } from '../../run/models.js'

const UNION = 'models/union-3m'

describe('pipelines with adapters', () => {
  it('say what is missing or misspelled', async () => {
    const open = (task: string, options?: object) => pipelineWithAdapters(task as never, UNION, options)
    await expect(open('text-generaton')).rejects.toThrow(/Did you mean text-generation\?/)
    await expect(open('question-answering')).rejects.toThrow(UnsupportedError)
    await expect(open('text-generation', { adaptor: {} })).rejects.toThrow(/Did you mean adapters\?/)
    await expect(open('text-generation', { transformers: {} })).rejects.toThrow(ConfigError)
  })

  it('say that the package is not installed', async () => {
    const call = pipelineWithAdapters('text-generation', UNION)
    await expect(call).rejects.toThrow(RuntimeError)
    await expect(call).rejects.toThrow(/npm install @huggingface\/transformers/)
  })
})

/** A base class like that of transformers.js: instances are functions with methods, and ignore unknown options. */
class Callable {
  constructor(parts: object) {
    const closure = (...args: unknown[]): unknown =>
      (closure as unknown as { _call(...args: unknown[]): unknown })._call(...args)
    // biome-ignore lint/correctness/noConstructorReturn: as transformers.js does
    return Object.setPrototypeOf(Object.assign(closure, parts), new.target.prototype)
  }
}

class FakeModel extends Callable {
  declare sessions: PreTrainedModel['sessions']

  constructor(config: object, sessions: object, configs: object) {
    super({ config, sessions, configs })
  }

  _call(inputs: object) {
    return this.forward(inputs)
  }

  forward(inputs: object) {
    const { inputNames } = this.sessions.model
    const known = Object.entries(inputs).filter(([name]) => inputNames.includes(name))
    return this.sessions.model.run(Object.fromEntries(known))
  }

  generate(inputs: object) {
    return this.forward(inputs)
  }
}

class FakePipeline extends Callable {
  declare model: FakeModel

  _call(inputs: object) {
    return this.model.generate(inputs)
  }
}

describe('calls that choose an adapter', async () => {
  const model = await openModel('tests/golden/models/llama-optimum')
  const a = makeAdapter(model, /q_proj$/, { std: 0.5 })
  const shared = await openShared(model, { adapters: { a } }, { dtype: 'fp32', device: 'cpu' })
  const { session } = shared
  afterAll(() => session.dispose())
  const inner = new FakeModel({ model_type: 'llama' }, {}, {})
  const base = new FakePipeline({ task: 'text-generation', model: inner }) as unknown as PipelineInstance
  const pipe = adapterPipeline(base, shared)
  const inputs = feedsOf(model, [[0, 5, 9, 7]])
  type Call = (
    options: Record<string, unknown>,
  ) => Promise<Record<string, { data: Float32Array; dims: number[]; type: 'float32' }>>
  const own = pipe.model as Call & Record<'generate' | 'forward', Call>
  const calls: Record<string, Call> = {
    pipeline: (options) => pipe({ ...inputs, ...options }, options) as ReturnType<Call>,
    model: (options) => own({ ...inputs, ...options }),
    'model.generate': (options) => own.generate({ ...inputs, ...options }),
    'model.forward': (options) => own.forward({ ...inputs, ...options }),
  }

  it.each(Object.entries(calls))('%s: runs it, and the base model without one', async (_, call) => {
    const [plain, adapted] = [(await session.run(inputs)).logits, (await session.run(inputs, { adapter: 'a' })).logits]
    expect(maxDifference(plain, adapted)).toBeGreaterThan(0.01)
    expect(maxDifference((await call({})).logits, plain)).toBeLessThan(1e-5)
    expect(maxDifference((await call({ adapter: null })).logits, plain)).toBeLessThan(1e-5)
    expect(maxDifference((await call({ adapter: 'a' })).logits, adapted)).toBeLessThan(1e-5)
  })

  it.each(Object.entries(calls))('%s: refuses what transformers.js takes and does nothing with', async (_, call) => {
    const refused = { signal: AbortSignal.timeout(1e6), stop_strings: ['a'], num_return_sequences: 2, num_beams: 4 }
    for (const [name, value] of Object.entries(refused)) {
      await expect((async () => call({ [name]: value }))(), name).rejects.toThrow(/^\w+: transformers\.js does nothing/)
    }
    const misspelt = [
      'max_new_token',
      'maxNewTokens',
      'max_new_tokns',
      'temprature',
      'do_smaple',
      'topP',
      'return_fulltext',
    ]
    for (const name of misspelt) {
      await expect((async () => call({ [name]: 1 }))(), name).rejects.toThrow(/no such option\. Did you mean \w+\?/)
    }
    const right = {
      max_new_tokens: 3,
      top_k: 2,
      num_return_sequences: 1,
      num_beams: 1,
      pooling: 'mean',
      normalize: true,
      max_time: 3,
    }
    await expect((async () => call(right))()).resolves.toBeDefined()
  })

  it.each(Object.entries(calls))('%s: refuses names that transformers.js would ignore', async (_, call) => {
    for (const name of ['adpater', 'adapters', 'adaptor', 'Adapter', 'adapter_name', 'lora', 'lora_request']) {
      const refused = expect((async () => call({ [name]: 'a' }))(), name).rejects
      await refused.toThrow(/no such option\. Did you mean adapter\?/)
    }
    await expect((async () => call({ adapter: 'b' }))()).rejects.toThrow(/no adapter "b"/)
    for (const name of ['max_new_tokens', 'streamer', 'past_key_values', 'a', 'temperature']) {
      await expect((async () => call({ [name]: undefined }))(), name).resolves.toBeDefined()
    }
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
