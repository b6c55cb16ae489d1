// Kinds of values that only options of tasks take, for the tables of options (gen/options.ts).

import { isObject, type Kind, kind, listOf, ranged } from '../../core/base/options.js'
import { LOSSES } from './vectors/losses.js'
import { RANK_LOSSES } from './vectors/rank-losses.js'

const SHORT_NAMES = { 'in-batch': 'MultipleNegativesRanking', cosine: 'CosineSimilarity', triplet: 'Triplet' } as const

export const LOSS_NAME: Kind = kind(
  `${Object.keys(LOSSES).join(', ')}. ${Object.entries(SHORT_NAMES)
    .map(([short, name]) => `${short} is ${name}`)
    .join(', ')}`,
  (value) => Object.hasOwn(LOSSES, value as string),
)

export const RANK_LOSS_NAME: Kind = kind(Object.keys(RANK_LOSSES).join(', '), (value) =>
  Object.hasOwn(RANK_LOSSES, value as string),
)

export const DIMENSIONS: Kind = kind('a list of one or more integers of at least 1', (value) => {
  return listOf(ranged('an integer of at least 1')).accepts(value) && (value as unknown[]).length > 0
})

export const CLASS_WEIGHTS: Kind = kind('balanced, or an object of labels with weights', (value) => {
  const isWeight = (weight: unknown) => typeof weight === 'number' && weight >= 0
  return value === 'balanced' || (isObject(value) && Object.values(value).every(isWeight))
})

export const TAG_NAMES: Kind = kind('names of tags', (value) => {
  const names = typeof value === 'string' ? value.trim().split(/\s+/) : value
  return Array.isArray(names) && names.length > 1 && names.every((name) => typeof name === 'string' && name !== '')
})
