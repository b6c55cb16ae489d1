// Compares a task's loss, outputs, gradients and steps with golden data.

import { expect } from 'vitest'
import { loadAdapter, type Model, type RuntimeTensor } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'
import { openEngine } from '../../../src/onnx/runtime/host.js'
import { TrainEngine } from '../../../src/train/engine/engine.js'
import { readParameters } from '../../../src/train/engine/parameters.js'
import { TrainingSessions } from '../../../src/train/engine/sessions.js'
import { resolveSettings } from '../../../src/train/settings.js'
import type { OpenTask } from '../../../src/train/tasks/task.js'
import { relativeError, transposed } from '../../model/golden.js'
import { takeStep } from '../take-step.js'

/** A run in golden.json. */
export interface GoldenRun {
  readonly loss: number
  readonly adamw: { lr: number; betas: number[]; eps: number; weightDecay: number; maxGradNorm: number }
  readonly adamwLosses: readonly number[]
  readonly gradNorms: readonly number[]
}

/**
 * Checks the loss, the gradients and the steps from `adapter-init` in a folder of golden data.
 *
 * @param length the length to which examples are padded
 * @returns the outputs from which the task predicts, before the first step
 */
export async function checkGoldenRun<Example>(
  model: Model,
  open: OpenTask<Example>,
  examples: readonly Example[],
  { folder, golden, length }: { folder: string; golden: GoldenRun; length: number },
): Promise<{ logits: RuntimeTensor; outputs: Record<string, RuntimeTensor> }> {
  const adapter = await loadAdapter(`${folder}/adapter-init`)
  const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
  const parts = { model, open: open as never, adapter, modules: undefined, settings: resolveSettings({ threads: 1 }) }
  const sessions = await TrainingSessions.create(parts, engine.remote)
  const names = sessions.parameters.map((parameter) => parameter.name)
  const parameters = readParameters(adapter, names)
  const zeros = () => parameters.map(({ length }) => new Float32Array(length))
  const { betas, eps, weightDecay, maxGradNorm, lr } = golden.adamw
  const optimizer = { beta1: betas[0], beta2: betas[1], epsilon: eps, weightDecay }
  await engine.remote.start(
    { parameters: sessions.parameters, optimizer, maxGradNorm },
    { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 },
  )
  const feeds = open.collate(examples, length)
  const normalizer = open.normalizer(examples)
  const evaluation = await sessions.evaluationPass(feeds, normalizer)
  const outputs = await engine.remote.forward(evaluation, [evaluation.loss, ...evaluation.predictions])
  expect(Number(outputs.loss.data[0])).toBeCloseTo(golden.loss, 5)

  const source = await new NodeDirectory(folder).open('gradients.safetensors')
  const expected = await parseSafetensorsHeader(source)
  const pass = await sessions.trainingPass(feeds, { normalizer, step: 0, run: 0 })
  const gradients = await engine.remote.forward(
    pass,
    sessions.parameters.map(({ gradient }) => gradient),
  )
  expect(expected.tensors.size).toBe(names.length)
  for (const { name, gradient } of sessions.parameters) {
    const factor = /^(.*)\.([AB])$/.exec(name)
    const key = factor === null ? name : `${factor[1]}.lora_${factor[2]}.weight`
    const { data, shape } = await readTensorF32(expected, `base_model.model.${key}`)
    const wanted = factor?.[2] === 'B' ? transposed(data, shape) : data
    expect(relativeError(gradients[gradient].data as Float32Array, wanted), name).toBeLessThan(1e-4)
  }
  await source.close()
  for (const [step, loss] of golden.adamwLosses.entries()) {
    const next = await sessions.trainingPass(feeds, { normalizer, step, run: 0 })
    const result = await takeStep(engine.remote, [next], lr)
    expect(result.loss).toBeCloseTo(loss, 4)
    expect(result.gradientNorm / golden.gradNorms[step]).toBeCloseTo(1, 3)
  }
  await engine.remote.dispose()
  return { logits: outputs[evaluation.predictions[0]], outputs }
}
