// The loss and the task's predictions of one model for each example, by the graph and the code of training.

import { Random } from '../base/random.js'
import { LoraAdapter } from '../lora/adapter.js'
import { openEngine } from '../runtime/host.js'
import type { OpenTask } from '../tasks/task.js'
import { TrainEngine } from '../train/engine.js'
import { startOf } from '../train/parameters.js'
import { planEvaluation } from '../train/rows/batches.js'
import { type SessionParts, TrainingSessions } from '../train/sessions.js'

type MeasureInput = Omit<SessionParts, 'modules' | 'on'> & {
  readonly examples: readonly unknown[]
  readonly next: () => Promise<void>
}

export interface Measured {
  readonly loss: number
  /** The mean loss of each example; undefined where a loss belongs to a whole batch. */
  readonly losses: readonly number[] | undefined
  /** The share of each example in a mean: its number of targets. */
  readonly weights: readonly number[]
  readonly predictions: readonly unknown[]
  readonly seconds: number
}

/** An adapter that changes nothing, for the base; undefined if the task's head would be a new one. */
export async function noAdapter({ head }: OpenTask): Promise<LoraAdapter | undefined> {
  if (head?.isNew) return undefined
  const adapter = new LoraAdapter({ targetModules: [], modulesToSave: head?.modulesToSave ?? [] })
  for (const { name, shape, start } of head?.tensors ?? []) {
    adapter.addReplacement(name, { data: await start(new Random(0, name)), shape })
  }
  return adapter
}

export async function measure(input: MeasureInput, takeReference = false): Promise<Measured> {
  const { model, open, adapter, examples, settings, next } = input
  const engine = await openEngine(model.runtime, 'train', async () => TrainEngine, settings.threads)
  try {
    const sessions = await TrainingSessions.create({ ...input, modules: undefined }, engine.remote, false)
    const { parameters } = sessions
    const names = parameters.map(({ name }) => name)
    await engine.remote.start({ parameters, optimizer: {}, maxGradNorm: 0 }, startOf(adapter, names))
    const startedAt = performance.now()
    // A loss that needs the other examples is that of a batch. Every other loss is wanted by the record.
    const isOfBatch = open.stepLoss !== undefined || open.needsNeighbors === true
    const limit = model.contextLength ?? Number.POSITIVE_INFINITY
    const costs = examples.map((example) => open.cost(example))
    const plans = planEvaluation(costs, {
      batchSize: isOfBatch || open.exampleLosses !== undefined ? settings.batchSize : 1,
      limit,
      inOrder: open.needsNeighbors ?? false,
    })
    const losses: number[] = Array(examples.length)
    const weights: number[] = Array(examples.length)
    const predictions: unknown[] = Array(examples.length)
    let [sum, total] = [0, 0]
    for (const { examples: places, sequence } of plans) {
      const batch = places.map((place) => examples[place])
      if (takeReference) open.takeReference?.((await sessions.forward(batch, sequence)).outputs, batch)
      const { loss, normalizer, outputs } = await sessions.forward(batch, sequence)
      sum += loss * normalizer
      total += normalizer
      const predicted = open.predict?.(outputs, batch) ?? []
      const own = open.exampleLosses?.(predicted)
      for (const [i, place] of places.entries()) {
        losses[place] = own?.[i] ?? loss
        weights[place] = own === undefined ? normalizer / places.length : open.normalizer([examples[place]])
        predictions[place] = predicted[i]
        await next()
      }
    }
    return {
      loss: sum / total,
      losses: isOfBatch ? undefined : losses,
      weights,
      predictions: open.predict === undefined ? [] : predictions,
      seconds: (performance.now() - startedAt) / 1000,
    }
  } finally {
    await engine.close().catch(() => {})
  }
}
