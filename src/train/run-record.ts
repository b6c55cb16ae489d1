// A run as run.json tells it: options of train, with all defaults of that time written out, so that the file repeats the run.

import type { DtypeChoice } from '../graph/graph-file.js'
import { type LoraConfig, resolveConfig } from '../lora/config.js'
import type { TrainingOptions } from './options.js'
import { TRAIN_DEFAULTS, type TrainSettings } from './settings.js'

/** What a run was given that can be written down: paths, ids and URLs. */
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
  const { preset, trainedTokens, task, taskOptions, evalSplit, columns, chatTemplate, chatTemplateArgs, modules } =
    options
  const own = { preset, trainedTokens, task, taskOptions, evalSplit, columns, chatTemplate, chatTemplateArgs, modules }
  const record = { ...sources, ...own, config: configOf(config), ...settings }
  return `${JSON.stringify(record, null, 2)}\n`
}

/** What differs from a config without settings, and what training has defaults of its own for. */
function configOf(config: LoraConfig): Record<string, unknown> {
  const plain = resolveConfig()
  return Object.fromEntries(
    Object.entries(config).filter(([key, value]) => {
      const isOwn = Object.hasOwn(TRAIN_DEFAULTS.config, key)
      return key !== 'baseModel' && (isOwn || JSON.stringify(value) !== JSON.stringify(plain[key as keyof LoraConfig]))
    }),
  )
}
