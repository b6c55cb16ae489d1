// The model card of a run: what was trained on what, how, and how good it is.

import { isByteSource, isDirectory } from '../data/source.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Task } from '../tasks/task.js'
import type { TrainingData, TrainingOptions } from './options.js'
import type { TrainReport } from './report.js'
import type { RunSources } from './run-record.js'
import type { TrainSettings } from './settings.js'

/** README.md of a run that is done. */
export async function cardOf(
  { evalLoss, evalMetrics, steps }: Pick<TrainReport, 'evalLoss' | 'evalMetrics' | 'steps'>,
  run: {
    options: TrainingOptions
    sources: RunSources | undefined
    task: Task
    adapter: LoraAdapter
    settings: TrainSettings
  },
): Promise<string> {
  const { options, sources, task, adapter, settings } = run
  const { model, out, data, evalData, evalSplit } = options
  const { config, labels, problemType } = adapter
  const { learningRate, schedule, batchSize, gradientAccumulation, loraPlusRatio, loraFa, weightDecay } = settings
  const { rank, alpha, dropout, useRslora, useDora, seed } = config
  const own = dataNames(sources?.data, data)
  const isVectors = task.reading === 'embed'
  const { modelCard } = await import('../peft/model-card.js')
  return modelCard({
    folder: out?.name ?? '',
    base: sources?.model.replace(/^hf:/, '') ?? model.name,
    baseName: model.directory.hubId ?? model.name,
    config,
    data: own,
    evalData: evalData === undefined ? own : dataNames(sources?.evalData, evalData),
    evalShare: evalData === undefined ? evalSplit : undefined,
    metrics: evalLoss === null ? {} : { loss: evalLoss.after, ...evalMetrics },
    settings: {
      task: task.name,
      steps,
      'learning rate': learningRate,
      schedule,
      'records in a step': batchSize * gradientAccumulation,
      rank,
      alpha,
      dropout,
      'LoRA+ ratio': loraPlusRatio,
      'LoRA-FA': loraFa || undefined,
      'weight decay': weightDecay === 0 ? undefined : weightDecay,
      rsLoRA: useRslora || undefined,
      DoRA: useDora || undefined,
      seed,
    },
    labels,
    problemType,
    pooling: isVectors ? model.sentence.pooling : undefined,
    normalize: isVectors && model.sentence.normalize,
  })
}

/** Names of the data in a card: of data in memory, nothing is known. */
function dataNames(sources: RunSources['data'] | undefined, data: TrainingData): string[] {
  if (sources !== undefined) return [sources].flat()
  const files = Array.isArray(data) ? data : [data]
  return files.flatMap((file) => (isByteSource(file) || isDirectory(file) ? [file.name] : []))
}
