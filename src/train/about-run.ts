// Facts that a run writes down about itself: the base in the adapter's config, run.json, and the model card.

import { type LoraConfig, type LoraConfigInput, resolveConfig } from '../lora/config.js'
import type { Model } from '../model/model-folder.js'
import type { Run } from './run.js'
import { TRAIN_DEFAULTS } from './settings.js'

/** The id or the path that was opened: config.json's own name can be that of another model. */
export function baseNameOf({ directory }: Pick<Model, 'directory'>): Pick<LoraConfigInput, 'peftFields'> & {
  baseModel: string
} {
  const { hubId, hubRevision, name } = directory
  // Without the dot, a relative path such as models/x would be an id on the Hub to those who read it.
  const path = /^([./\\]|[a-z][\w+.-]*:)/i.test(name) ? name : `./${name}`
  return { baseModel: hubId ?? path, ...(hubRevision !== undefined && { peftFields: { revision: hubRevision } }) }
}

/** Options that repeat a run, beside its settings and its config. */
const RECORDED = [
  'preset',
  'trainedTokens',
  'numLayers',
  'task',
  'taskOptions',
  'skipInvalid',
  'termsRead',
  'evalSplit',
  'columns',
  'chatTemplate',
  'chatTemplateArgs',
  'toolForm',
  'toolsInAdapter',
  'modules',
] as const

/** The task's options, of which keys are written nowhere. */
export function taskOptionsOf({ taskOptions = {} }: Run['options']): Readonly<Record<string, unknown>> {
  const { teacherKey: _, ...others } = taskOptions
  return others
}

/**
 * Returns the options that repeat the run. They do not have the output, since a repeated run goes somewhere else.
 * Returns undefined if the adapter or the data came from memory.
 */
export function runRecord({ options, around: { sources }, settings, config }: Run): string | undefined {
  if (sources === undefined || options.adapter !== undefined) return undefined
  const given = { ...options, taskOptions: options.taskOptions && taskOptionsOf(options) }
  const recorded = Object.fromEntries(RECORDED.map((name) => [name, given[name]]))
  const { warmupRatio, ...others } = settings
  const warmup = settings.warmupSteps === undefined ? { warmupRatio } : {}
  const record = { ...sources, ...recorded, config: configOf(config), ...others, ...warmup }
  return `${JSON.stringify(record, null, 2)}\n`
}

function configOf(config: LoraConfig): Record<string, unknown> {
  const plain = resolveConfig()
  return Object.fromEntries(
    Object.entries(config).filter(([key, value]) => {
      const isOwn = Object.hasOwn(TRAIN_DEFAULTS.config, key)
      return key !== 'baseModel' && (isOwn || JSON.stringify(value) !== JSON.stringify(plain[key as keyof LoraConfig]))
    }),
  )
}
