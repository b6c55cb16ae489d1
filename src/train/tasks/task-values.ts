// Kinds of values that only options of tasks take, for the tables of options (gen/options.ts).

import { isObject, type Kind, kind } from '../../core/base/options.js'

export const CLASS_WEIGHTS: Kind = kind('balanced, or an object of labels with weights', (value) => {
  const isWeight = (weight: unknown) => typeof weight === 'number' && weight >= 0
  return value === 'balanced' || (isObject(value) && Object.values(value).every(isWeight))
})

export const TAG_NAMES: Kind = kind('names of tags', (value) => {
  const names = typeof value === 'string' ? value.trim().split(/\s+/) : value
  return Array.isArray(names) && names.length > 1 && names.every((name) => typeof name === 'string' && name !== '')
})
