// The modules that PEFT adapts when a config names no target_modules: a table of model types (utils/constants.py),
// generated.

import { ConfigError, nearMisses } from '../base/errors.js'
import { DEFAULT_TARGETS } from './gen/default-targets.js'

/** As targetModules: what PEFT would adapt in the model, by its type. */
export const DEFAULT = 'default'

/**
 * PEFT's default target_modules.
 *
 * @param modelType model_type of the model's config.json, as in `llama`
 * @returns names of modules, or an expression for them
 * @throws ConfigError with near misses for a type that PEFT has no defaults for
 */
export function defaultTargetModules(modelType: string): readonly string[] | string {
  if (Object.hasOwn(DEFAULT_TARGETS, modelType)) return DEFAULT_TARGETS[modelType]
  const near = nearMisses(modelType, Object.keys(DEFAULT_TARGETS))
  throw new ConfigError({
    where: 'targetModules',
    what: 'PEFT has no default modules for this type of model',
    expected: near.length > 0 ? `a type such as ${near.join(', ')}` : 'a type of its table',
    got: modelType,
    hint: 'Name the modules, or use all-linear',
  })
}
