import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  DataError,
  type EvaluationEvent,
  FileError,
  LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  MismatchError,
  type Model,
  NumericError,
  type OrtModule,
  type StepEvent,
  type TrainReport,
} from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { OnnxModel } from '../../src/onnx/format/model.js'
import type { TrainInput } from '../../src/train/options.js'
import { METRICS_FILE, STATE_FILE } from '../../src/train/saved/run-folder.js'
import { weightOf } from '../onnx/format/onnx-models.js'
import { cases } from '../thorough.js'
import { abortAt, data, evalData, folder, module, path, trainTiny, WEIGHTS } from './tiny.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(folder, { runtime: { module } })
})
afterAll(() => model.close())

/** Six short steps, two of them in a second epoch. */
const train = (options: Partial<TrainInput> = {}) => trainTiny({ model, ...options })

/** The result of a run without interruption. */
let whole: { out: MemoryDirectory; report: TrainReport }
beforeAll(async () => {
  const out = new MemoryDirectory()
  whole = { out, ...(await train({ out, evalData })) }
})

function largestWeight({ proto }: OnnxModel): string {
  const size = ({ dims }: { dims: readonly bigint[] }) => dims.reduce((product, dim) => product * Number(dim), 1)
  return proto.graph!.initializer.reduce((a, b) => (size(b) > size(a) ? b : a)).name
}

describe('train', () => {
  it('says how many chats have parts that are not learned', async () => {
    const warnings: string[] = []
    const question = { role: 'user', content: 'who' }
    const tools = [{ type: 'function', function: { name: 'f' } }]
    const call = { role: 'assistant', content: '', tool_calls: [{ type: 'function', function: { name: 'f' } }] }
    await train({
      data: [
        { messages: [question, { role: 'assistant', content: 'Ahab' }] },
        { messages: [question, { role: 'assistant', content: '' }, question, { role: 'assistant', content: 'I' }] },
        { tools, messages: [question, call, { role: 'tool', content: 'x' }, { role: 'assistant', content: 'It' }] },
        { messages: [question, { role: 'assistant', content: 'secret', weight: 0 }] },
      ],
      evalData: undefined,
      chatTemplate:
        '{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}',
      maxLength: 128,
      maxSteps: 1,
      on: { warning: (message) => void warnings.push(message) },
    })
    expect(warnings.filter((message) => /^data: (?!.*cut to)/.test(message))).toEqual([
      'data: 2 of 4 records left out, because they have no target',
      'data: 1 of 4 records have empty answers, which are not learned',
    ])
  })

  it.each([
    [0.5, 2],
    [1.5, 5],
  ])('takes %d epochs of 3 steps as %d steps, rounded up as in TRL', async (epochs, steps) => {
    expect((await train({ data, batchSize: 8, maxSteps: undefined, epochs })).report.steps).toBe(steps)
  })

  it('learns, and reports what it did', async () => {
    const out = new MemoryDirectory()
    const steps: StepEvent[] = []
    const evaluations: EvaluationEvent[] = []
    const warnings: string[] = []
    const { adapter, report } = await train({
      data,
      evalData,
      batchSize: 8,
      maxSteps: undefined,
      epochs: 2,
      out,
      on: {
        step: (event) => void steps.push(event),
        evaluation: (event) => void evaluations.push(event),
        warning: (message) => void warnings.push(message),
      },
    })
    expect(report.steps).toBe(6)
    expect(report.trainLoss).toEqual(steps.map(({ loss }) => loss))
    expect(report.trainLoss[5]).toBeLessThan(report.trainLoss[0])
    expect(report.evalLoss?.after).toBeLessThan(report.evalLoss?.before as number)
    expect(report.evalMetrics?.perplexity).toBeCloseTo(Math.exp(report.evalLoss?.after as number), 6)
    expect(evaluations.map(({ step, loss }) => [step, loss])).toEqual([
      [0, report.evalLoss?.before],
      [6, report.evalLoss?.after],
    ])
    expect(report.truncatedRecords).toBe(24)
    expect(warnings.filter((message) => message.startsWith('data: '))).toEqual([
      'data: 24 of 24 records cut to 24 tokens',
    ])
    expect(report.tokens).toBe(2 * 24 * 24)
    expect(report.trainableParams).toBe(adapter.totalTrainableParams())
    expect(report.totalParams).toBe(adapter.totalParams())
    expect(report.interrupted).toBe(false)
    expect(report.peakRssBytes).toBeGreaterThan(1e7)
    expect(report.runtime).toMatch(/^onnxruntime-node 1\./)
    expect(steps.map(({ epoch }) => epoch)).toEqual([0, 0, 0, 1, 1, 1])
    // Each record is cut to 24 tokens.
    for (const { examplesPerSecond, tokensPerSecond } of steps) {
      expect(tokensPerSecond / examplesPerSecond).toBeCloseTo(24, 6)
    }
    const lines = new TextDecoder().decode(out.files.get(METRICS_FILE)).trimEnd().split('\n')
    expect(lines.map((line) => JSON.parse(line).loss)).toEqual(report.trainLoss)
    const saved = await loadAdapter(out)
    expect(saved.names()).toEqual(expect.arrayContaining(adapter.names()))
    expect(saved.layer('model.layers.0.mlp.up_proj').weightB).toEqual(
      adapter.layer('model.layers.0.mlp.up_proj').weightB,
    )
    expect(out.files.has(STATE_FILE)).toBe(false)
  })

  it('writes byte-equal adapters with one seed, others with another', async () => {
    const [same, other] = [new MemoryDirectory(), new MemoryDirectory()]
    await train({ out: same })
    await train({ out: other, config: { seed: 7 } })
    expect(same.files.get(WEIGHTS)).toEqual(whole.out.files.get(WEIGHTS))
    expect(other.files.get(WEIGHTS)).not.toEqual(whole.out.files.get(WEIGHTS))
  })

  it('resumes to what an unbroken run gives, byte for byte', async () => {
    const broken = new MemoryDirectory()
    const first = await train({ out: broken, evalData, ...abortAt(3) })
    expect(first.report).toMatchObject({ steps: 3, interrupted: true, evalLoss: null })
    expect(broken.files.has(STATE_FILE)).toBe(true)
    expect((await loadAdapter(broken)).size).toBe(first.adapter.size)
    const second = await train({ out: broken, evalData, resume: true })
    expect(broken.files.get(WEIGHTS)).toEqual(whole.out.files.get(WEIGHTS))
    expect(second.report.trainLoss).toEqual(whole.report.trainLoss)
    expect(second.report.evalLoss).toEqual(whole.report.evalLoss)
    expect(second.report.tokens).toBe(whole.report.tokens)
    await expect(train({ out: broken, resume: true })).rejects.toThrow('finished')
  })

  it('is done where it is told to stop in its last step', async () => {
    const out = new MemoryDirectory()
    const { report } = await train({ out, ...abortAt(6) })
    expect(report).toMatchObject({ steps: 6, interrupted: false })
    expect(out.files.has(STATE_FILE)).toBe(false)
  })

  it('makes up for a last evaluation that was interrupted', async () => {
    const out = new MemoryDirectory()
    const controller = new AbortController()
    const on = { stage: (stage: string) => void (stage === 'save' && controller.abort()) }
    const { report } = await train({ out, evalData, signal: controller.signal, on })
    expect(report).toMatchObject({ steps: 6, interrupted: true, evalLoss: null })
    const resumed = await train({ out, evalData, resume: true })
    expect(resumed.report).toMatchObject({ steps: 6, interrupted: false })
    expect(resumed.report.evalLoss).toEqual(whole.report.evalLoss)
  })

  it('resumes from a state that was saved on the way', async () => {
    const broken = new MemoryDirectory()
    const stop = new Error('stop')
    const on = { step: ({ step }: StepEvent) => void (step === 5 && fail(stop)) }
    await expect(train({ out: broken, saveEvery: 2, on })).rejects.toThrow(stop)
    const { report } = await train({ out: broken, resume: true })
    expect(report.steps).toBe(6)
    expect(broken.files.get(WEIGHTS)).toEqual(whole.out.files.get(WEIGHTS))
  })

  it('learns at its first step that a folder takes no files', async () => {
    const out = new MemoryDirectory()
    out.create = async (path) => Promise.reject(new FileError({ where: path, what: 'cannot be written' }))
    const steps: number[] = []
    await expect(train({ out, on: { step: ({ step }) => void steps.push(step) } })).rejects.toThrow(FileError)
    expect(steps).toEqual([])
  })

  it('refuses to resume with other parts', async () => {
    const out = new MemoryDirectory({}, 'out')
    await train({ out, evalData, ...abortAt(1) })
    const before = new Map(out.files)
    const others = cases<Partial<TrainInput>>(
      [{ data: data.slice(1, 17) }, { config: { rank: 2 } }, { evalData: undefined }],
      [{ learningRate: 1e-3 }, { config: { alpha: 4 } }, { maxSteps: 7 }, { evalData: evalData.slice(1) }],
    )
    for (const change of others) {
      await expect(train({ out, evalData, resume: true, ...change })).rejects.toThrow(MismatchError)
    }
    await expect(train({ out, evalData, resume: true, batchSize: 2 })).rejects.toThrow(
      /another batchSize; expected 4, got 2/,
    )
    expect(out.files).toEqual(before)
  })

  it('refuses to resume over a base with other weights under the same graph', async () => {
    const out = new MemoryDirectory()
    await train({ out, ...abortAt(2) })
    const bytes = readFileSync(path('tests/golden/models/llama-optimum/onnx/model.onnx'))
    const { offset } = weightOf(model.onnx, largestWeight(model.onnx))!
    bytes[offset] ^= 1
    const files = new Map(model.onnx.files).set(model.onnx.fileName, new MemorySource(bytes))
    const onnx = new OnnxModel(model.onnx.name, model.onnx.fileName, model.onnx.proto, files)
    await expect(train({ out, resume: true, model: { ...model, onnx } })).rejects.toThrow(/another base weights/)
    expect((await train({ out, resume: true })).report.steps).toBe(6)
  })

  it('gets the same from accumulated batches as from one', async () => {
    const options = { config: { dropout: 0 }, data, maxLength: 64, maxSteps: 3 }
    const whole = await train({ ...options, batchSize: 6 })
    const parts = await train({ ...options, batchSize: 2, gradientAccumulation: 3 })
    parts.report.trainLoss.forEach((loss, i) => void expect(loss).toBeCloseTo(whole.report.trainLoss[i], 4))
    expect(parts.report.tokens).toBe(whole.report.tokens)
  })

  it('goes on with an adapter', async () => {
    const { adapter } = await train({ maxSteps: 4, config: { dropout: 0 } })
    const before = adapter.layer('model.layers.0.self_attn.q_proj').weightB.data.slice()
    const { adapter: after, report } = await train({ adapter, maxSteps: 2 })
    expect(after).toBe(adapter)
    expect(report.trainLoss[0]).toBeLessThan((await train({ maxSteps: 1, config: { dropout: 0 } })).report.trainLoss[0])
    expect(after.layer('model.layers.0.self_attn.q_proj').weightB.data).not.toEqual(before)
  })

  it('stops before the first step when it is told to', async () => {
    const out = new MemoryDirectory()
    const { report } = await train({ out, signal: AbortSignal.abort() })
    expect(report).toMatchObject({ steps: 0, interrupted: true, evalLoss: null, stepMillis: null })
    expect((await train({ out, resume: true })).report.steps).toBe(6)
  })

  it('replaces no run before it made a step', async () => {
    const out = new MemoryDirectory()
    await train({ out, maxSteps: 1 })
    const before = new Map(out.files)
    const { report } = await train({ out, overwrite: true, signal: AbortSignal.abort() })
    expect(report).toMatchObject({ steps: 0, interrupted: true })
    expect(out.files).toEqual(before)
    await train({ out, overwrite: true, config: { seed: 7 }, ...abortAt(1) })
    expect(out.files.get(WEIGHTS)).not.toEqual(before.get(WEIGHTS))
  })

  it('evaluates on the way', async () => {
    const evaluations: number[] = []
    const on = { evaluation: ({ step }: EvaluationEvent) => void evaluations.push(step) }
    await train({ evalData, evalEvery: 2, on })
    expect(evaluations).toEqual([0, 2, 4, 6])
  })
})

function fail(error: Error): never {
  throw error
}

/** Makes an ONNX Runtime whose loss is NaN from the given training step on. */
function poisoned(from: number): OrtModule {
  let steps = 0
  const create = async (...args: Parameters<OrtModule['InferenceSession']['create']>) => {
    const session = await module.InferenceSession.create(...args)
    return {
      inputNames: session.inputNames,
      outputNames: session.outputNames,
      release: () => session.release(),
      async run(feeds: Record<string, unknown>, fetches?: readonly string[]) {
        const results = await session.run(feeds, fetches ?? session.outputNames)
        const isStep = fetches?.[0] === 'loss' && fetches.length > 1
        if (isStep && ++steps >= from) (results.loss as { data: Float32Array }).data.fill(Number.NaN)
        return results
      },
    }
  }
  return { ...module, InferenceSession: { create } }
}

describe('what goes wrong', () => {
  it('keeps the last good adapter when the loss is not finite, and says at which step', async () => {
    const runtime = { module: poisoned(4) }
    const bad = await loadModel(folder, { runtime })
    const out = new MemoryDirectory({}, 'out')
    const error = await train({ model: bad, out }).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(NumericError)
    expect((error as Error).message).toMatch(/^step 4: the loss is NaN; the last good adapter is in out/)
    // Step 3's loss was the last finite one: its parameters are those after two updates.
    const { adapter } = await train({ maxSteps: 6, ...abortAt(2) })
    const kept = await loadAdapter(out)
    const layer = 'model.layers.1.mlp.down_proj'
    expect(kept.layer(layer).weightB).toEqual(adapter.layer(layer).weightB)
    await bad.close()
  })

  it('writes nothing when the first loss is not finite', async () => {
    const bad = await loadModel(folder, { runtime: { module: poisoned(1) } })
    const out = new MemoryDirectory()
    await expect(train({ model: bad, out })).rejects.toThrow('step 1: the loss is NaN')
    expect(out.files.size).toBe(0)
    await bad.close()
  })

  it('says what went wrong even where it cannot clear the folder', async () => {
    const out = new MemoryDirectory()
    const { create } = out
    out.create = async (file) => (file === METRICS_FILE ? fail(new Error('the disk is full')) : create.call(out, file))
    out.remove = async () => fail(new Error('the disk is gone'))
    await expect(train({ out, maxSteps: 1 })).rejects.toThrow('the disk is full')
  })

  it.each([
    [{ config: { targetModules: ['q_prj'] } }, MismatchError, /q_proj/],
    [{ config: { targetModules: [] } }, ConfigError, /targetModules/],
    [{ config: { rank: 500 } }, ConfigError, /model\.layers\.0\.self_attn\.\w+: the rank is too high.*at most/],
    [{ config: { rank: 0 } }, ConfigError, /rank/],
    [{ config: { dropout: 1 } }, ConfigError, /dropout/],
    [{ config: { alpha: 0 } }, ConfigError, /^alpha: nothing would be learned; expected a number above 0/],
    [{ maxLength: 129 }, ConfigError, /maxLength: above the model's context; expected at most 128, got 129/],
    [{ data: [] }, DataError, /data: it holds no records/],
    [{ data: [{ txt: 'a' }] as never }, DataError, /data\[0\]: not a valid record/],
    [{ evalData: [{ text: 'a' }, {}] as never }, DataError, /evalData\[1\]: not a valid record/],
    [{ data: 'a.jsonl' as never }, ConfigError, /^data: neither records nor a file/],
    [{ evalData: {} as never }, ConfigError, /^evalData: neither records nor a file/],
    [{ resume: true, overwrite: true }, ConfigError, /not together with overwrite/],
    [{ resume: true }, FileError, /no unfinished run/],
    [{ evalEvery: 2 }, ConfigError, /evalEvery. needs records/],
  ] as [Partial<TrainInput>, unknown, RegExp][])('%j', async (options, kind, message) => {
    const out = new MemoryDirectory()
    const error = await (async () => train({ out, ...options }))().catch((error: unknown) => error)
    expect(error).toBeInstanceOf(kind as typeof ConfigError)
    expect((error as Error).message).toMatch(message)
    expect(out.files.size).toBe(0)
  })

  it('refuses an adapter whose factors it could not change', async () => {
    const empty = new LoraAdapter({ rank: 2 })
    await expect(async () => train({ adapter: empty })).rejects.toThrow(/adapter: it has no layers/)
    const merged = new LoraAdapter({ rank: 2 })
    merged.addLayer('model.layers.0.self_attn.k_proj', { data: new Float32Array(32 * 32), shape: [32, 32] })
    merged.layer('model.layers.0.self_attn.k_proj').merge()
    await expect(async () => train({ adapter: merged })).rejects.toThrow(/k_proj: it is merged/)
  })

  it('leaves a folder alone that is not empty', async () => {
    const out = new MemoryDirectory({ 'notes.txt': 'mine' })
    await expect(train({ out })).rejects.toThrow(FileError)
    await expect(train({ out, overwrite: true })).rejects.toThrow(FileError)
    expect([...out.files.keys()]).toEqual(['notes.txt'])
  })
})

describe('sessions', () => {
  /** Makes an ONNX Runtime that logs which sessions open and close. Training sessions are those with gradients. */
  function noting(log: string[]): OrtModule {
    const create = async (...args: Parameters<OrtModule['InferenceSession']['create']>) => {
      const session = await module.InferenceSession.create(...args)
      // Other sessions are not logged, such as those with a single operator, which only find out shapes.
      if (!session.inputNames.includes('input_ids') || !session.outputNames.includes('loss')) return session
      const kind = session.outputNames.length > 2 ? 'training' : 'evaluation'
      log.push(`open ${kind}`)
      const release = () => {
        log.push(`close ${kind}`)
        return session.release()
      }
      const { inputNames, outputNames } = session
      return { inputNames, outputNames, release, run: session.run.bind(session) }
    }
    return { ...module, InferenceSession: { create } }
  }

  const lengths: Partial<TrainInput> = {
    data: [4, 9, 17, 26, 40].flatMap((n) => Array(4).fill({ text: ' the'.repeat(n) })),
    evalData: [{ text: ' the' }],
    maxLength: 64,
    config: { dropout: 0 },
  }

  it('serve all lengths with one of each kind', async () => {
    const log: string[] = []
    const noted = { ...model, runtime: { module: noting(log) } }
    await train({ ...lengths, model: noted, evalEvery: 2 })
    const both = ['open evaluation', 'open training', 'close evaluation', 'close training']
    expect(log).toEqual(both)
  })

  it('are never open together where evaluations are far apart, which changes no result', async () => {
    const log: string[] = []
    const noted = { ...model, runtime: { module: noting(log) } }
    const { report } = await train({ ...lengths, model: noted })
    const turns = ['evaluation', 'training', 'evaluation'].flatMap((kind) => [`open ${kind}`, `close ${kind}`])
    expect(log).toEqual(turns)
    expect(report.trainLoss).toEqual((await train({ ...lengths, evalEvery: 2 })).report.trainLoss)
  })
})
