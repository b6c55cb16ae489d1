// Looks up facts about types of models.

import type { HeadForm, HeadKind, ModelType } from './family.js'
import { TYPES } from './gen/types.js'

export const ALL: readonly ModelType[] = Object.values(TYPES)

const PLAIN: ModelType = {}

/** Returns the facts for a model_type of config.json; empty for a type that is in no file. */
export function modelType(type: unknown): ModelType {
  return typeof type === 'string' && Object.hasOwn(TYPES, type) ? TYPES[type] : PLAIN
}

export function typesWith(key: keyof ModelType): string[] {
  return Object.keys(TYPES).filter((name) => key in TYPES[name])
}

export function headOf(config: Readonly<Record<string, unknown>>, kind: HeadKind): HeadForm | undefined {
  const head = modelType(config.model_type).heads?.[kind]
  return typeof head === 'function' ? head(config) : head
}

export function isConv1d(module: string): boolean {
  return ALL.some(({ conv1d }) => conv1d?.test(module))
}

/** Says whether stacked experts are stored as (E, k, d), and the rows of gate and up in turn. */
export function expertForm(config: Readonly<Record<string, unknown>> | undefined): {
  isInputMajor: boolean
  hasTurns: boolean
} {
  const types = [config, config?.text_config].map((part) => modelType(Object(part).model_type))
  const is = (fact: 'hasInputMajorExperts' | 'hasGateInTurn') => types.some((type) => type[fact] === true)
  return { isInputMajor: is('hasInputMajorExperts'), hasTurns: is('hasGateInTurn') }
}
