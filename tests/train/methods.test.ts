// DoRA, rsLoRA, trained biases and trained modules: PEFT's gradients, losses and weights. DoRA with dropout: PEFT's
// gradients with given masks.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ConfigError, type Feeds, loadAdapter, MemoryDirectory, type Model } from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { transpose } from '../../src/core/base/tensor.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { rowNorms } from '../../src/lora/delta.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { squaresOfRows } from '../../src/train/engine/dora.js'
import { readParameters } from '../../src/train/engine/parameters.js'
import { buildTrainingGraph } from '../../src/train/graph/training-graph.js'
import type { TrainInput } from '../../src/train/options.js'
import { STATE_FILE } from '../../src/train/saved/run-folder.js'
import { loadTask } from '../../src/train/tasks/tasks.js'
import { train } from '../../src/train/train.js'
import { openModel } from '../run/models.js'
import { abortAt, WEIGHTS } from './tiny.js'

const encoder = 'tests/golden/text-classification/encoder'
const golden = 'tests/golden/training-methods'
const { learningRate, losses, dropout } = JSON.parse(readFileSync(`${golden}/golden.json`, 'utf8'))
const { rows, maxLength } = JSON.parse(readFileSync(`${encoder}/golden/golden.json`, 'utf8'))

let model: Model
beforeAll(async () => {
  model = await openModel(encoder)
})
afterAll(() => model.close())

const steps = (options: Partial<TrainInput>) =>
  train({
    model,
    task: 'text-classification',
    data: rows,
    batchSize: rows.length,
    maxSteps: 10,
    maxLength,
    learningRate,
    schedule: 'constant',
    warmupRatio: 0,
    maxGradNorm: 0,
    threads: 1,
    ...options,
  })

const start = (name: string) => loadAdapter(`${golden}/${name}/adapter-init`)

/** Reads the values of a file by name. */
async function tensorsOf(bytes: Uint8Array): Promise<Map<string, { data: Float32Array; shape: readonly number[] }>> {
  const file = await parseSafetensorsHeader(new MemorySource(bytes, 'file'))
  const tensors = new Map()
  for (const name of file.tensors.keys()) tensors.set(name, await readTensorF32(file, name))
  return tensors
}

/** Returns PEFT's name of a tensor in the state, and whether the state holds it transposed. */
function inPeft(name: string): { key: string; isTransposed: boolean } {
  const [, module, role] = /^(.*)\.([^.]*)$/.exec(name)!
  const roles: Record<string, string> = {
    A: 'lora_A.weight',
    B: 'lora_B.weight',
    magnitude: 'lora_magnitude_vector.weight',
  }
  return { key: `base_model.model.${module}.${roles[role] ?? role}`, isTransposed: role === 'B' }
}

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length)
  return Array.from(a).reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0)
}

describe.each(['dora', 'rslora', 'bias-all', 'bias-lora-only', 'saved'])('%s', (name) => {
  it("has PEFT's gradients", async () => {
    const out = new MemoryDirectory()
    await steps({ adapter: await start(name), out, ...abortAt(1) })
    const wanted = await tensorsOf(readFileSync(`${golden}/${name}/gradients.safetensors`))
    const state = await tensorsOf(out.files.get(STATE_FILE)!)
    const seen = new Set<string>()
    for (const [entry, { data }] of state) {
      if (!entry.startsWith('firstMoments/')) continue
      const { key: own, isTransposed } = inPeft(entry.slice('firstMoments/'.length))
      const key = wanted.has(own) ? own : own.replace(/\.bias$/, '.base_layer.bias')
      const gradient = wanted.get(key)
      expect(gradient, key).toBeDefined()
      const { shape, data: values } = gradient!
      // AdamW's first moment after one step is a tenth of the gradient.
      const mine = Float64Array.from(values, (_, i) => {
        const [d, r] = shape
        return 10 * data[isTransposed ? (i % r) * d + Math.floor(i / r) : i]
      })
      expect(largestDifference(mine, values), key).toBeLessThan(2e-6)
      seen.add(key)
    }
    expect([...seen].sort()).toEqual([...wanted.keys()].sort())
    expect([...seen].some((key) => key.includes('magnitude'))).toBe(name === 'dora')
  })

  it('takes the steps of PEFT, and PEFT finds the same weights in the file', async () => {
    const out = new MemoryDirectory()
    const { report } = await steps({ adapter: await start(name), out })
    expect(largestDifference(report.trainLoss, losses[name])).toBeLessThan(1e-4)
    const wanted = await tensorsOf(readFileSync(`${golden}/${name}/after.safetensors`))
    const gradients = await tensorsOf(readFileSync(`${golden}/${name}/gradients.safetensors`))
    const saved = await tensorsOf(out.files.get(WEIGHTS)!)
    expect([...saved.keys()].sort()).toEqual(
      [...wanted.keys()].map((key) => key.replace('vector.weight', 'vector')).sort(),
    )
    for (const [key, { data }] of wanted) {
      const own = saved.get(key.replace('vector.weight', 'vector'))!
      // Attention does not depend on a bias of the keys. Its gradient is rounding noise, which AdamW turns into steps,
      // so a larger difference is allowed.
      const isNoise = gradients.get(key)!.data.every((value) => Math.abs(value) < 1e-9)
      expect(largestDifference(own.data, data), key).toBeLessThan(isNoise ? 10 * learningRate : 1e-4)
    }
  })
})

describe('DoRA with dropout', () => {
  /** Computes the loss and the gradients, by PEFT's names, with PEFT's dropout masks. */
  async function withMasks(): Promise<{ loss: number; gradients: Map<string, Float32Array> }> {
    const adapter = await start('dora-dropout')
    const task = await loadTask('text-classification')
    const examples = rows.flatMap((row: unknown) => {
      return task.encode(task.parse(row, 'row'), {
        model,
        maxLength,
        chatTemplate: () => undefined,
        chatTemplateArgs: {},
      }).examples
    })
    const open = task.open(model, examples)
    const runtime = await loadNodeRuntime()
    const linears = adapter.parts('linear')
    const squares = await squaresOfRows(model, linears, undefined)
    const layers = linears.map(({ name, d, k, rank, scaling }) => {
      return { name, d, k, rank, scaling, baseSquares: squares.get(name) }
    })
    const graph = await buildTrainingGraph(model.onnx, runtime, open, { layers, dropout })
    const names = graph.parameters.map(({ name }) => name)
    const values = readParameters(adapter, names)
    const draw = { normalizer: examples.length, dropout: { seed: 1, step: 0, run: 0 } }
    const feeds: Feeds = graph.feeds(open.collate(examples, maxLength), draw)
    for (const [i, { input, shape }] of graph.parameters.entries()) {
      feeds[input] = { type: 'float32', data: values[i], dims: shape }
    }
    const masks = await tensorsOf(readFileSync(`${golden}/dora-dropout/masks.safetensors`))
    expect(masks.size).toBe(layers.length)
    for (const [name, { data }] of masks) {
      const input = `lora/${name}/dropout`
      expect(feeds[input].data.length, name).toBe(data.length)
      feeds[input] = { ...feeds[input], data: Uint8Array.from(data) }
    }
    const session = await runtime.createSession(await graph.sessionModel(), { threads: 1 })
    const outputs = await session.run(feeds, [graph.loss, ...graph.parameters.map(({ gradient }) => gradient)])
    await session.dispose()
    const gradients = graph.parameters.map(({ name, gradient, shape }): [string, Float32Array] => {
      const { key, isTransposed } = inPeft(name)
      const data = outputs[gradient].data as Float32Array
      return [key, isTransposed ? Float32Array.from(transpose({ data, shape: [shape[0], shape[1]] }).data) : data]
    })
    return { loss: outputs[graph.loss].data[0] as number, gradients: new Map(gradients) }
  }

  it("has PEFT's loss and gradients", async () => {
    const { loss, gradients } = await withMasks()
    expect(loss).toBeCloseTo(losses['dora-dropout'][0], 5)
    const wanted = await tensorsOf(readFileSync(`${golden}/dora-dropout/gradients.safetensors`))
    expect([...gradients.keys()].sort()).toEqual([...wanted.keys()].sort())
    for (const [key, { data }] of wanted) {
      expect(largestDifference(gradients.get(key)!, data), key).toBeLessThan(2e-6)
    }
  })

  it('resumes to the same bytes', async () => {
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const config = { rank: 2, useDora: true, dropout: 0.2 }
    await steps({ config, out: whole, maxSteps: 4 })
    await steps({ config, out: broken, maxSteps: 4, ...abortAt(2) })
    await steps({ config, out: broken, maxSteps: 4, resume: true })
    expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  })
})

describe('a new adapter', () => {
  const fresh = (config: TrainInput['config'], options: Partial<TrainInput> = {}) =>
    steps({ config, maxSteps: 2, ...options })

  it('with DoRA starts as the model: its magnitudes are the norms of the rows', async () => {
    const started: number[] = []
    const plain: number[] = []
    await fresh({ rank: 2, useDora: true }, { on: { step: ({ loss }) => void started.push(loss) } })
    await fresh({ rank: 2 }, { on: { step: ({ loss }) => void plain.push(loss) } })
    expect(started[0]).toBeCloseTo(plain[0], 5)
    expect(started[1]).not.toBeCloseTo(plain[1], 6)
    const { adapter } = await fresh({ rank: 2, useDora: true }, { signal: AbortSignal.abort() })
    const { weight, name } = queryWeight()
    const { magnitude } = adapter.layer(name)
    expect(largestDifference(magnitude!, rowNorms(await weight))).toBeLessThan(1e-6)
  })

  it('with DoRA resumes to the same bytes', async () => {
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const config = { rank: 2, useDora: true }
    await fresh(config, { out: whole, maxSteps: 4 })
    await fresh(config, { out: broken, maxSteps: 4, ...abortAt(2) })
    await fresh(config, { out: broken, maxSteps: 4, resume: true })
    expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  })

  it('has the ranks and alphas of its patterns', async () => {
    const rankPattern = { query: 5 }
    const { adapter } = await fresh({ rank: 2, rankPattern, alphaPattern: { value: 3 }, useRslora: true })
    const layers = adapter.parts('linear')
    expect(new Set(layers.filter(({ name }) => name.endsWith('query')).map(({ rank }) => rank))).toEqual(new Set([5]))
    expect(new Set(layers.filter(({ name }) => !name.endsWith('query')).map(({ rank }) => rank))).toEqual(new Set([2]))
    expect(layers.find(({ name }) => name.endsWith('value'))?.scaling).toBeCloseTo(3 / Math.sqrt(2), 12)
  })

  it('is refused with a rank of 0', async () => {
    await expect(fresh({ rankPattern: { query: 0 } })).rejects.toThrow(ConfigError)
  })

  /** Reads the weight (16, 16) of a query from the model's file. */
  function queryWeight() {
    const name = 'bert.encoder.layer.0.attention.self.query'
    const { name: node } = { name: 'encoder.layer.0.attention.self.query' }
    return { name, weight: weightOf(node) }
  }

  async function weightOf(module: string) {
    const { findLinears } = await import('../../src/model/match/linears.js')
    const { readGraph } = await import('../../src/onnx/view/graph.js')
    const graph = readGraph(model.onnx)
    const linear = findLinears(graph).find(({ name }) => name.endsWith(module))!
    const read = await linear.form.openLines(model.onnx, graph, linear)
    const lines = await read(0, linear.transposed ? linear.d : linear.k)
    const data = new Float32Array(lines.length)
    for (let i = 0; i < linear.d; i++) {
      for (let j = 0; j < linear.k; j++) {
        data[i * linear.k + j] = lines[linear.transposed ? i * linear.k + j : j * linear.d + i]
      }
    }
    return { data, shape: [linear.d, linear.k] as const }
  }
})
