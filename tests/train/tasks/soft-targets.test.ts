import { readFileSync } from 'node:fs'
import { openSession, train } from 'lowrank'
import { beforeAll, describe, expect, it } from 'vitest'
import type { Feeds, Model } from '../../../src/api/node.js'
import { type Example, IGNORED } from '../../../src/model/text/records.js'
import { makeTokenizer } from '../../../src/model/text/tokenizer.js'
import { OnnxModel } from '../../../src/onnx/format/model.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { TrainEngine } from '../../../src/train/engine/engine.js'
import { buildTrainingGraph } from '../../../src/train/graph/training-graph.js'
import {
  probeSoft,
  type SoftExample,
  softFeeds,
  softLength,
  softLoss,
  softTargetsOf,
} from '../../../src/train/rows/soft-targets.js'
import { enginesHere } from '../../engines-here.js'
import { goldenPath } from '../../golden.js'
import { addInput, addOutput, DataType, emptyGraph, floats, floatTensor } from '../../onnx/toolkit.js'
import { takeStep } from '../take-step.js'

beforeAll(enginesHere)

const tokenizerOf = (file: string) => makeTokenizer(JSON.parse(readFileSync(file, 'utf8')), {}, file)
const modelOf = (file: string, vocabularySize = 2048) => ({ tokenizer: tokenizerOf(file), vocabularySize }) as Model
const union = modelOf('models/union-3m/tokenizer.json')
const entry = (token: string, share: number, others: Record<string, number> = {}) => ({
  ...{ token, bytes: [...Buffer.from(token)], logprob: Math.log(share) },
  top_logprobs: Object.entries({ [token]: share, ...others }).map(([text, share]) => ({
    ...{ token: text, bytes: [...Buffer.from(text)], logprob: Math.log(share) },
  })),
})
const exampleOf = ({ tokenizer }: Model, prompt: string, answer: string): Example => {
  const [asked, answered] = [prompt, answer].map((text) => tokenizer!.encode(text, { specialTokens: false }))
  const inputIds = Int32Array.from([...asked, ...answered])
  return { inputIds, labels: inputIds.slice().fill(IGNORED, 0, asked.length) }
}
const shown = ({ tokenizer }: Model, { inputIds }: Example, soft: SoftExample['soft']) =>
  [...(soft?.positions ?? [])].map((position, i) => {
    const [label, token] = [inputIds[position], soft!.tokens[i]].map((id) => tokenizer!.decode([id]))
    return [label, token, Number(soft!.shares[i].toFixed(3))]
  })

describe('soft targets', () => {
  it('stand where the bytes of a token are those of ours, and choose among tokens of ours', () => {
    const example = exampleOf(union, 'The captain said', ' the sea was calm')
    const content = [
      entry(' the', 0.6, { ' a': 0.2, ' zzzzqq': 0.2 }),
      // Theirs is one token, and ours are two.
      entry(' sea was', 0.5, { ' a': 0.5 }),
      entry(' ca', 0.5, { ' a': 0.5 }),
      entry('lm', 0.9, {}),
    ]
    expect(shown(union, example, softTargetsOf({ content }, example, union))).toEqual([
      [' the', ' the', 0.75],
      [' the', ' a', 0.25],
    ])
  })

  it('read pieces of SentencePiece, its bytes, and parts of letters', () => {
    const pieces = modelOf(goldenPath('chat', 'sentencepiece.json'), 700)
    const { vocab } = JSON.parse(readFileSync(goldenPath('chat', 'sentencepiece.json'), 'utf8')).model
    const ids = (...tokens: string[]) => Int32Array.from(tokens, (token) => vocab[token])
    const inputIds = ids('A', '▁▁the', 'A', '<0xC3>', '<0xA9>')
    const example = { inputIds, labels: inputIds.with(0, IGNORED) }
    const part = (byte: number) => ({ ...entry('?', 0.5), bytes: [byte], top_logprobs: [entry('A', 0.5)] })
    const content = [entry('  the', 0.5, { '  a': 0.5 }), entry('A', 0.5, { B: 0.5 }), part(0xc3), part(0xa9)]
    const { tokens, shares } = softTargetsOf({ content }, example, pieces)!
    expect(tokens).toEqual(ids('▁▁the', '▁▁a', 'A', 'B', '<0xC3>', 'A', '<0xA9>', 'A'))
    expect(new Set(shares)).toEqual(new Set([0.5]))
  })

  it.each([
    ['another answer', [entry(' no', 0.5, { ' a': 0.5 })]],
    ['tokens without others', [entry(' the', 1)]],
    ['no tokens', null],
  ])('are none for %s', (_, content) => {
    const example = exampleOf(union, 'Hm?', ' the')
    expect(softTargetsOf({ content }, example, union)).toBeUndefined()
  })

  const [K, V, RANK, SCALING] = [3, 7, 2, 1.5]
  const wave = (length: number, phase: number) => Array.from({ length }, (_, i) => Math.sin(phase + 1.7 * i))

  it.each([4, 9, 12])('have the loss and the gradient of a reference in float64: %i rows', async (rows) => {
    const graph = emptyGraph(17)
    addInput(graph, 'x', DataType.FLOAT, ['batch', K])
    graph.addInitializer(floatTensor('layer.weight', DataType.FLOAT, wave(K * V, 1), [K, V]))
    graph.rename(new Builder(graph, 'layer').matmul('x', 'layer.weight'), 'e')
    addOutput(graph, 'e', DataType.FLOAT)
    const model = new OnnxModel('toy', 'toy.onnx', graph.toModel(), new Map())
    const plain = (count: number): Feeds => ({
      x: floats(DataType.FLOAT, wave(count * K, count), [count, K]),
      targets: {
        type: 'int64',
        data: BigInt64Array.from(Array.from({ length: count }, (_, i) => [BigInt(i), BigInt(i % V)]).flat()),
        dims: [count, 2],
      },
    })
    const batch = { name: 'batch', probed: [4, 9], of: ({ x }: Feeds) => x.dims[0], source: { input: 'x', axis: 0 } }
    const training = await buildTrainingGraph(
      model,
      await loadNodeRuntime(),
      {
        probe: {
          feeds: [4, 9].map((count, i) => ({ ...plain(count), ...probeSoft(i) })) as [Feeds, Feeds],
          lengths: [batch as never, softLength()],
        },
        forward: (objective) => {
          const targets = objective.input('targets', DataType.INT64, ['batch', 2])
          return softLoss(objective, 'e', objective.crossEntropy('e', targets))
        },
      },
      { layers: [{ name: 'layer', d: V, k: K, rank: RANK, scaling: SCALING }] },
    )
    // Every third row has its label alone.
    const examples = Array.from({ length: rows }, (_, i): SoftExample => {
      const [label, other, third] = [i, i + 2, i + 3].map((id) => id % V)
      const labels = Int32Array.from([IGNORED, label])
      if (i % 3 === 0) return { inputIds: labels, labels }
      const soft = {
        positions: Int32Array.from([1, 1, 1]),
        tokens: Int32Array.from([other, label, third]),
        shares: Float32Array.from([0.25, 0.625, 0.125]),
      }
      return { inputIds: labels, labels, soft }
    })
    const [a, bt, x, w] = [wave(RANK * K, 2), wave(RANK * V, 3), wave(rows * K, rows), wave(K * V, 1)]
    const sum = (count: number, of: (i: number) => number) =>
      Array.from({ length: count }, (_, i) => of(i)).reduce((s, v) => s + v, 0)
    let loss = 0
    const [da, db] = [Array(RANK * K).fill(0), Array(RANK * V).fill(0)]
    for (const [row, { labels, soft }] of examples.entries()) {
      const ax = Array.from({ length: RANK }, (_, r) => sum(K, (k) => a[r * K + k] * x[row * K + k]))
      const logits = Array.from({ length: V }, (_, v) => {
        return sum(K, (k) => x[row * K + k] * w[k * V + v]) + SCALING * sum(RANK, (r) => ax[r] * bt[r * V + v])
      })
      const total = sum(V, (v) => Math.exp(logits[v]))
      const wanted = Array(V).fill(0).with(labels[1], 1)
      soft?.tokens.forEach((token, i) => {
        wanted[token] = soft.shares[i]
      })
      loss -= sum(V, (v) => wanted[v] * (logits[v] - Math.log(total)))
      const slopes = logits.map((logit, v) => SCALING * (Math.exp(logit) / total - wanted[v]))
      for (let r = 0; r < RANK; r++) {
        for (let v = 0; v < V; v++) db[r * V + v] += ax[r] * slopes[v]
        const back = sum(V, (v) => slopes[v] * bt[r * V + v])
        for (let k = 0; k < K; k++) da[r * K + k] += back * x[row * K + k]
      }
    }
    const engine = new TrainEngine(await loadNodeRuntime())
    const { id: session } = await engine.openSession(await training.sessionModel(), { threads: 1 })
    const zeros = () => [new Float32Array(RANK * K), new Float32Array(RANK * V)]
    await engine.start(
      { parameters: training.parameters, optimizer: { weightDecay: 0 }, maxGradNorm: 1 },
      {
        ...{ parameters: [a, bt].map((values) => Float32Array.from(values)), updates: 0 },
        ...{ firstMoments: zeros(), secondMoments: zeros() },
      },
    )
    const feeds = training.feeds({ ...plain(rows), ...softFeeds(examples) }, { normalizer: 1 })
    const found = await takeStep(engine, [{ session, loss: training.loss, feeds }], 0)
    expect(found.loss / loss).toBeCloseTo(1, 5)
    expect(found.gradientNorm / Math.hypot(...da, ...db)).toBeCloseTo(1, 5)
  })

  it('are learned beside plain rows of a batch: the first loss is that of the probabilities of a session', async () => {
    const model = 'models/union-3m'
    const chatTemplate = '<|bos|>{% for m in messages %}{{ m.content }}{% endfor %}'
    const prompts = ['The captain said', 'Call me Ishmael. Some years']
    const row = (i: number, more = {}) => ({
      messages: [
        { role: 'user', content: prompts[i] },
        { role: 'assistant', content: ' the' },
      ],
      ...more,
    })
    const logprobs = { content: [entry(' the', 0.75, { ' a': 0.25 })] }
    const first = async (data: object[]) => {
      const { report } = await train({ model, data, chatTemplate, maxSteps: 1, batchSize: 4, threads: 1 } as never)
      return { loss: report.trainLoss[0], tokens: report.tokens }
    }
    const plain = await first([row(0), row(1)])
    const soft = await first([row(0), row(1, { logprobs })])
    const session = await openSession(model, { threads: 1 })
    const [ofThe, ofA] = await Promise.all(
      [' the', ' a'].map(async (answer) => {
        return (await session.score(prompts[1] + answer)).at(-1)!.logprob!
      }),
    )
    await session.dispose()
    const targets = 2
    expect(soft.loss - plain.loss).toBeCloseTo((0.25 * (ofThe - ofA)) / targets, 4)
  }, 60_000)
})
