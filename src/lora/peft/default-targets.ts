// The modules that PEFT adapts if a config does not name target_modules (utils/constants.py).

import { ConfigError, nearMisses } from '../../core/base/errors.js'
import { DEFAULT_TARGETS } from './gen/default-targets.js'

export const DEFAULT = 'default'

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
