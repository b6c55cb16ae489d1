// Facts that a run writes down about itself: the base in the adapter's config, run.json, and the model card.

import { isByteSource, isDirectory } from '../data/source.js'
import type { DtypeChoice } from '../graph/graph-file.js'
import type { Model } from '../graph/model-folder.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { type LoraConfig, type LoraConfigInput, resolveConfig } from '../lora/config.js'
import { modelCard } from '../peft/model-card.js'
import type { OpenTask, Task } from '../tasks/task.js'
import type { TrainingData, TrainingOptions } from './options.js'
import type { RunReport } from './run.js'
import { TRAIN_DEFAULTS, type TrainSettings } from './settings.js'

/**
 * The base as an adapter names it: the id or the path that was opened. config.json's own name can be that of another
 * model.
 */
export function baseNameOf({ directory }: Pick<Model, 'directory'>): Pick<LoraConfigInput, 'peftFields'> & {
  baseModel: string
} {
  const { hubId, hubRevision, name } = directory
  // Without the dot, a relative path such as models/x would be an id on the Hub to those who read it.
  const path = /^([./\\]|[a-z][\w+.-]*:)/i.test(name) ? name : `./${name}`
  return { baseModel: hubId ?? path, ...(hubRevision !== undefined && { peftFields: { revision: hubRevision } }) }
}

/** Names of the model and the data that can be written down: paths, ids and URLs. */
export interface RunSources {
  readonly model: string
  readonly dtype?: DtypeChoice | undefined
  readonly data: string | readonly string[]
  readonly evalData?: string | readonly string[] | undefined
}

/**
 * The text of run.json. Where the adapter goes is not in it: a repeated run goes somewhere else.
 *
 * @returns undefined for a run that trains an adapter from memory
 */
export function runRecord(
  options: Omit<TrainingOptions, 'model' | 'data' | 'evalData'>,
  sources: RunSources,
  { settings, config }: { settings: TrainSettings; config: LoraConfig },
): string | undefined {
  if (options.adapter !== undefined) return undefined
  const {
    preset,
    trainedTokens,
    task,
    taskOptions,
    skipInvalid,
    evalSplit,
    columns,
    chatTemplate,
    chatTemplateArgs,
    modules,
  } = options
  const own = {
    preset,
    trainedTokens,
    task,
    taskOptions,
    skipInvalid,
    evalSplit,
    columns,
    chatTemplate,
    chatTemplateArgs,
    modules,
  }
  const record = { ...sources, ...own, config: configOf(config), ...settings }
  return `${JSON.stringify(record, null, 2)}\n`
}

/** The fields that differ from PEFT's defaults, and those for which training has defaults of its own. */
function configOf(config: LoraConfig): Record<string, unknown> {
  const plain = resolveConfig()
  return Object.fromEntries(
    Object.entries(config).filter(([key, value]) => {
      const isOwn = Object.hasOwn(TRAIN_DEFAULTS.config, key)
      return key !== 'baseModel' && (isOwn || JSON.stringify(value) !== JSON.stringify(plain[key as keyof LoraConfig]))
    }),
  )
}

/** Parts of a run that its card and its page tell of. */
export interface AboutRun {
  readonly options: TrainingOptions
  readonly sources: RunSources | undefined
  readonly task: Task
  readonly open: OpenTask
  readonly adapter: LoraAdapter
  readonly settings: TrainSettings
}

/** README.md of a run that is done. */
export function cardOf(
  { evalLoss, evalMetrics, evaluations, steps }: Pick<RunReport, 'evalLoss' | 'evalMetrics' | 'evaluations' | 'steps'>,
  run: AboutRun,
): string {
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
