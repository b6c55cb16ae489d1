// The embedding losses, gradients and steps of sentence-transformers, from scripts/golden/embedding.py.

import { expect } from 'vitest'
import { loadAdapter, type Model } from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'
import { openEngine } from '../../../src/onnx/runtime/host.js'
import { TrainEngine } from '../../../src/train/engine/engine.js'
import { ADAMW } from '../../../src/train/engine/optimizer.js'
import { readParameters } from '../../../src/train/engine/parameters.js'
import { TrainingSessions } from '../../../src/train/engine/sessions.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import { resolveSettings } from '../../../src/train/settings.js'
import { type EmbeddingOptions, embedding, type RelatedExample } from '../../../src/train/tasks/embedding.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { relativeError, transposed } from '../../model/golden.js'
import { takeStep } from '../take-step.js'

/** The losses in golden.json, by sentence-transformers. */
export interface GoldenLosses {
  rows: { text: string; textPair: string; negative: string; score: number }[]
  temperature: number
  margin: number
  adamw: { lr: number; betas: number[]; eps: number; weightDecay: number; maxGradNorm: number }
  losses: Record<string, { loss: number; adamwLosses: number[] }>
}

/** The content of embedding/golden.json. */
export interface GoldenEmbedding extends GoldenLosses {
  maxLength: number
  texts: string[]
  mean: number[][]
  meanUnscaled: number[][]
  cls: number[][]
}

/** A loss in golden.json: the fields of rows that it takes, and its options. */
export function lossCases({ temperature, margin }: GoldenLosses) {
  const cases: Record<string, { fields: (keyof GoldenLosses['rows'][number])[]; options: EmbeddingOptions }> = {
    'in-batch': { fields: ['text', 'textPair'], options: { scale: 1 / temperature } },
    'in-batch-negatives': {
      fields: ['text', 'textPair', 'negative'],
      options: { loss: 'MultipleNegativesRanking', scale: 1 / temperature },
    },
    cosine: { fields: ['text', 'textPair', 'score'], options: {} },
    triplet: { fields: ['text', 'textPair', 'negative'], options: { loss: 'Triplet', margin } },
  }
  return cases
}

export async function lossExamples(model: Model, golden: GoldenLosses, name: string, maxLength = 16) {
  const { fields } = lossCases(golden)[name]
  // The texts of these all have the default prompt, as texts without a direction do.
  const names: Record<string, string> = { text: 'sentence1', textPair: 'sentence2' }
  const rows = golden.rows.map((row) => Object.fromEntries(fields.map((field) => [names[field] ?? field, row[field]])))
  const options = { task: embedding as unknown as Task, model, maxLength, name: 'data' }
  const { kept } = await encodeRows(readRows(rows), options)
  return [...kept.examples] as RelatedExample[]
}

interface EmbeddingRun {
  readonly folder: string
  readonly golden: GoldenLosses
  /** The name of the loss in golden.json. */
  readonly name: string
  readonly options: EmbeddingOptions
  /** The examples of each run of a step. */
  readonly parts: readonly (readonly number[])[]
}

/**
 * Trains from `adapter-init` in a folder of golden data, and checks the loss of each step. If a step is a single run of
 * the graph, the gradients of the first step are checked too.
 */
export async function checkEmbeddingRun(
  model: Model,
  examples: readonly RelatedExample[],
  { folder, golden, name, options, parts }: EmbeddingRun,
): Promise<void> {
  const adapter = await loadAdapter(`${folder}/adapter-init`)
  const open = embedding.open(model, examples, options)
  const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
  const settings = resolveSettings({ threads: 1 })
  const sessions = await TrainingSessions.create(
    { model, open: open as never, adapter, modules: undefined, settings },
    engine.remote,
  )
  const names = sessions.parameters.map((parameter) => parameter.name)
  const parameters = readParameters(adapter, names)
  const zeros = () => parameters.map(({ length }) => new Float32Array(length))
  const { betas, eps, weightDecay, maxGradNorm, lr } = golden.adamw
  expect({ beta1: betas[0], beta2: betas[1], epsilon: eps }).toEqual(ADAMW)
  await engine.remote.start(
    {
      parameters: sessions.parameters,
      optimizer: { weightDecay },
      maxGradNorm,
    },
    { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 },
  )
  const source = await new NodeDirectory(folder).open('gradients.safetensors')
  const expected = await parseSafetensorsHeader(source)
  for (const [step, wanted] of golden.losses[name].adamwLosses.entries()) {
    const batches = parts.map((part) => part.map((i) => examples[i]))
    const feeds = batches.map((batch) => open.collate(batch, 16))
    const runs = []
    for (const [run, own] of feeds.entries()) {
      const pass = await sessions.firstPass(own, { step, run })
      runs.push({ outputs: await engine.remote.forward(pass, pass.predictions), examples: batches[run] })
    }
    const { loss, feeds: fed } = open.stepLoss!(runs)
    expect(Math.abs(loss - wanted)).toBeLessThan(1e-5)
    const passes = []
    for (const [run, own] of feeds.entries()) {
      passes.push(await sessions.trainingPass({ ...own, ...fed[run] }, { normalizer: 1, step, run }))
    }
    if (step === 0 && parts.length === 1) {
      const gradients = await engine.remote.forward(
        passes[0],
        sessions.parameters.map(({ gradient }) => gradient),
      )
      for (const { name: parameter, gradient } of sessions.parameters) {
        const factor = /^(.*)\.([AB])$/.exec(parameter)!
        const key = `${name}/base_model.model.${factor[1]}.lora_${factor[2]}.weight`
        const { data, shape } = await readTensorF32(expected, key)
        const own = factor[2] === 'B' ? transposed(data, shape) : data
        expect(relativeError(gradients[gradient].data as Float32Array, own), parameter).toBeLessThan(2e-4)
      }
    }
    await takeStep(engine.remote, passes, lr, loss)
  }
  await source.close()
  await engine.remote.dispose()
}
