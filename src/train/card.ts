// README.md of a run: the model card. Only runs that write a folder load it.

import { isByteSource, isDirectory } from '../data/source.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Examples, OpenTask, Task } from '../tasks/task.js'
import { baseNameOf, type RunSources } from './about-run.js'
import type { TrainingData, TrainingOptions } from './options.js'
import type { TrainReport } from './report.js'
import type { DataFacts } from './rows/facts.js'
import { modelCard } from './saved/model-card.js'
import type { TrainSettings } from './settings.js'

export interface CardSources {
  readonly options: TrainingOptions
  readonly sources: RunSources | undefined
  readonly task: Task
  readonly open: OpenTask
  readonly adapter: LoraAdapter
  readonly settings: TrainSettings
  readonly facts: DataFacts
  /** As they are encoded, before any are packed. */
  readonly examples: Examples<unknown>
}

type CardReport = Pick<TrainReport, 'evalLoss' | 'evalMetrics' | 'evaluations' | 'steps'>

export function cardOf({ evalLoss, evalMetrics, evaluations, steps }: CardReport, run: CardSources): string {
  const { options, sources, task, adapter, settings } = run
  const { model, out, data, evalData, evalSplit } = options
  const { config, labels, problemType } = adapter
  const { hubId } = model.directory
  const { baseModel: baseName } = baseNameOf(model)
  const { learningRate, schedule, batchSize, gradientAccumulation, loraPlusRatio, loraFa, weightDecay } = settings
  const { rank, alpha, dropout, useRslora, useDora, seed } = config
  const own = dataNames(sources?.data, data)
  const use = run.open.plainUse ?? task.use
  const isVectors = use.command?.[0] === 'embed'
  return modelCard({
    folder: out?.name ?? '',
    base: hubId === undefined ? baseName : (sources?.model.replace(/^hf:/, '') ?? hubId),
    baseName,
    config,
    use,
    input: run.facts.prompt,
    data: own,
    evalData: evalData === undefined ? own : dataNames(sources?.evalData, evalData),
    evalShare: evalData === undefined ? evalSplit : undefined,
    metrics: evalLoss === null ? {} : { loss: evalLoss.after, ...evalMetrics },
    before: evalLoss === null ? {} : { loss: evalLoss.before, ...evaluations[0]?.metrics },
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
