// A step of the optimizer with the gradients of some passes.

import type { Remote } from '../../src/onnx/runtime/rpc.js'
import type { Pass, TrainEngine } from '../../src/train/engine/engine.js'

/** `stepLoss`: the loss, where those of the passes are only a way to its gradients. */
export async function takeStep(
  engine: Pick<TrainEngine | Remote<TrainEngine>, 'accumulate' | 'update'>,
  passes: readonly Pass[],
  learningRate: number,
  stepLoss?: number,
): Promise<{ loss: number; gradientNorm: number }> {
  let sum = 0
  for (const pass of passes) sum += (await engine.accumulate(pass)).loss
  const loss = stepLoss ?? sum
  return { loss, gradientNorm: await engine.update(loss, learningRate) }
}
