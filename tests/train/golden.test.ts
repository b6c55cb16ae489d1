import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import * as ort from 'onnxruntime-node'
import { expect, it } from 'vitest'
import { loadAdapter, loadModel } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { openEngine } from '../../src/onnx/runtime/host.js'
import { TrainEngine } from '../../src/train/engine/engine.js'
import { ADAMW } from '../../src/train/engine/optimizer.js'
import { readParameters, writeParameters } from '../../src/train/engine/parameters.js'
import { TrainingSessions } from '../../src/train/engine/sessions.js'
import { resolveSettings } from '../../src/train/settings.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import type { TokenCounts } from '../../src/train/tasks/next-tokens.js'
import { takeStep } from './take-step.js'

const path = (relative: string) => fileURLToPath(new URL(`../../${relative}`, import.meta.url))
const golden = JSON.parse(readFileSync(path('tests/golden/train-union/golden.json'), 'utf8'))

interface GoldenBatch {
  inputIds: number[][]
  attentionMask: number[][]
  labels: number[][]
}
/** The golden batches: rows without padding, and the padded length. */
const batches = (golden.batches as GoldenBatch[]).map(({ inputIds, attentionMask, labels }) => {
  const lengths = attentionMask.map((row) => row.reduce((sum, entry) => sum + entry, 0))
  const cut = (row: number[], i: number) => Int32Array.from(row.slice(0, lengths[i]))
  const examples = inputIds.map((row, i) => ({ inputIds: cut(row, i), labels: cut(labels[i], i) }))
  return { examples, length: inputIds[0].length }
})

/** Opens the model with a PEFT adapter for training. */
async function openTraining(folder: string) {
  const model = await loadModel(path('models/union-3m'), {
    runtime: { module: ort },
  })
  const adapter = await loadAdapter(path(`tests/golden/train-union/${folder}`))
  const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
  const settings = resolveSettings({ threads: 1 })
  const open = causalLm.open(model, [])
  const sessions = await TrainingSessions.create({ model, open, adapter, settings, modules: undefined }, engine.remote)
  const names = sessions.parameters.map(({ name }) => name)
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
  return { model, adapter, engine, open, sessions, names, rate: lr }
}

/** Takes the same ten steps from a PEFT adapter as PyTorch. */
async function tenSteps(folder: string) {
  const { model, adapter, engine, open, sessions, names, rate } = await openTraining(folder)
  const losses: number[] = []
  const norms: number[] = []
  for (let step = 0; step < 10; step++) {
    const { examples, length } = batches[step % batches.length]
    const normalizer = open.normalizer(examples)
    const pass = await sessions.trainingPass(open.collate(examples, length), { normalizer, step, run: 0 })
    const { loss, gradientNorm } = await takeStep(engine.remote, [pass], rate)
    losses.push(loss)
    norms.push(gradientNorm)
  }
  writeParameters(adapter, names, (await engine.remote.state()).parameters)
  await engine.remote.dispose()
  await model.close()
  return { losses, norms, adapter }
}

it('finds the targets that PEFT and PyTorch predict', async () => {
  const { model, engine, open, sessions } = await openTraining('adapter-init')
  const counts = []
  for (const { examples, length } of batches) {
    const pass = await sessions.evaluationPass(open.collate(examples, length), open.normalizer(examples))
    counts.push(open.predict!(await engine.remote.forward(pass, pass.predictions), examples) as TokenCounts[])
  }
  expect(counts.map((batch) => batch.map(({ correct }) => correct))).toEqual(golden.correct)
  const sum = (numbers: number[]) => numbers.reduce((total, number) => total + number, 0)
  const targets = sum(batches.map(({ examples }) => open.normalizer(examples)))
  const { accuracy } = open.metrics({ loss: 2, examples: [], predictions: counts.flat() })
  expect(accuracy).toBe(sum(golden.correct.flat()) / targets)
  await engine.remote.dispose()
  await model.close()
})

it('takes the ten AdamW steps that PEFT and PyTorch take', async () => {
  const { losses, norms, adapter } = await tenSteps('adapter-init')
  losses.forEach((loss, i) => void expect(Math.abs(loss - golden.adamwLosses[i])).toBeLessThan(1e-4))
  norms.forEach((norm, i) => void expect(Math.abs(norm / golden.gradNorms[i] - 1)).toBeLessThan(1e-4))
  const source = await new NodeDirectory(path('tests/golden/train-union')).open('adapter-final.safetensors')
  const final = await parseSafetensorsHeader(source)
  for (const { name, weightA, weightB } of adapter.parts('linear')) {
    for (const [factor, { data }] of [
      ['A', weightA],
      ['B', weightB],
    ] as const) {
      const expected = await readTensorF32(final, `base_model.model.${name}.lora_${factor}.weight`)
      const worst = Math.max(...Array.from(data, (value, i) => Math.abs(value - expected.data[i])))
      expect(worst, `${name}.${factor}`).toBeLessThan(5e-4)
    }
  }
  await source.close()
})

it('does so from B = 0 too', async () => {
  const { losses, norms } = await tenSteps('adapter-zero')
  losses.forEach((loss, i) => void expect(Math.abs(loss - golden.adamwLossesZeroB[i])).toBeLessThan(1e-4))
  norms.forEach((norm, i) => void expect(Math.abs(norm / golden.gradNormsZeroB[i] - 1)).toBeLessThan(1e-4))
})
