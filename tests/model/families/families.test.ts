// The files of src/model/families: each model type in one file, under a name that transformers has.

import { readdirSync } from 'node:fs'
import { expect, it } from 'vitest'
import { loadTables } from '../../../src/merge/plan/names/tables.js'
import { modelType } from '../../../src/model/families/families.js'
import type { ModelTypes } from '../../../src/model/families/family.js'

const files = readdirSync('src/model/families').flatMap((name) => /^(?!famil|heads)(.*)\.ts$/.exec(name)?.[1] ?? [])

/** Types whose code is not in transformers. */
const REMOTE = ['internlm2']

it('have each type of model once, and all that modelType finds', async () => {
  const owners = new Map<string, string>()
  const tables = await loadTables()
  for (const file of files) {
    const { TYPES }: { TYPES: ModelTypes } = await import(`../../../src/model/families/${file}.ts`)
    expect(Object.keys(TYPES).length, file).toBeGreaterThan(0)
    for (const [type, facts] of Object.entries(TYPES)) {
      expect(owners.get(type), type).toBeUndefined()
      owners.set(type, file)
      expect(tables.isKnown(type), `${type} in ${file}`).toBe(!REMOTE.includes(type))
      expect(modelType(type)).toBe(facts)
      expect(Object.keys(facts), type).not.toEqual([])
    }
  }
  expect(owners.size).toBeGreaterThan(60)
  expect(modelType('toString')).toEqual({})
  expect(modelType(undefined)).toEqual({})
})
