// If a command names only an adapter, it opens the base that the adapter was trained on.

import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { baseOf } from '../../../src/app/cli/run/with-session.js'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lowrank-base-'))
  for (const path of ['here/models/x', 'here/out/mine', 'here/out/models']) {
    mkdirSync(join(folder, path), { recursive: true })
  }
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

it('is found beside the adapter when both were moved, and is never looked for on the Hub', () => {
  const adapter = join(folder, 'here/out/mine')
  const base = (baseModel: string, revision?: string) => baseOf(adapter, { baseModel, peftFields: { revision } })
  expect(base('./models/x')).toBe(join(folder, 'here/models/x'))
  expect(base('../here/models/x')).toBe(join(folder, 'here/models/x'))
  expect(base('./models/y')).toBe('./models/y')
  expect(base(join(folder, 'here/models/x'))).toBe(join(folder, 'here/models/x'))
})

it('has the revision that the adapter names', () => {
  const base = (baseModel: string, revision: unknown) => baseOf(folder, { baseModel, peftFields: { revision } })
  expect(base('org/name', 'v2')).toBe('hf:org/name@v2')
  expect(base('org/name', null)).toBe('org/name')
})
