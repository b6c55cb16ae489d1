// The tools give the same results in Chromium as in Node, on files in memory.

import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, it } from 'vitest'
import { browser, buildPage, ISOLATED } from '../../browser.js'
import { goldenPath } from '../../golden.js'
import { type JobFiles, type JobResult, runJob } from './job.js'

const FOLDERS = {
  first: goldenPath('combine', 'first'),
  second: goldenPath('combine', 'second'),
  dora: goldenPath('kinds', 'dora'),
  llama: goldenPath('gguf', 'llama'),
}

function readFiles(): JobFiles {
  const files: JobFiles = { first: {}, second: {}, dora: {}, llama: {} }
  for (const [folder, path] of Object.entries(FOLDERS)) {
    for (const name of readdirSync(path)) {
      if (/^(adapter_|config)/.test(name)) files[folder as keyof typeof FOLDERS][name] = bytesOf(`${path}/${name}`)
    }
  }
  return files
}

function bytesOf(path: string): Uint8Array {
  return new Uint8Array(readFileSync(path))
}

const files = readFiles()
let expected: JobResult

beforeAll(async () => {
  expected = await runJob(files)
})

it('tells in Node what is true', () => {
  const { numbers, written, progress, refused } = expected
  expect(numbers['exact error']).toBeLessThan(1e-6)
  expect(numbers.linear).not.toBeCloseTo(numbers.exact, 2)
  expect(Object.keys(written).sort()).toEqual([
    'gguf/adapter.gguf',
    'mlx/adapter_config.json',
    'mlx/adapters.safetensors',
  ])
  expect(numbers['back from mlx']).toBeCloseTo(numbers.llama, 1)
  expect(progress.length).toBeGreaterThan(20)
  expect(refused).toMatch(/DoRA adapters cannot be combined/)
})

describe.skipIf(browser === undefined)('the tools in Chromium', () => {
  const served = new Map<string, Uint8Array>()
  const list = Object.entries(files).flatMap(([folder, own]) => Object.keys(own).map((name) => [folder, name]))
  for (const [folder, name] of list) served.set(`/${folder}/${name}`, files[folder as keyof JobFiles][name])
  served.set('/files.json', Buffer.from(JSON.stringify(list)))
  const page = buildPage<JobResult>(fileURLToPath(new URL('page.ts', import.meta.url)), served)

  it.each([['isolated', ISOLATED]] as const)('give what Node gives: %s', async (_, headers) => {
    const got = await page.open(headers)
    expect(got).not.toHaveProperty('failed')
    expect(Object.keys(got.numbers)).toEqual(Object.keys(expected.numbers))
    for (const [name, value] of Object.entries(expected.numbers)) expect(got.numbers[name], name).toBeCloseTo(value, 3)
    expect(got.written).toEqual(expected.written)
    expect(got.progress).toEqual(expected.progress)
    expect(got.refused).toBe(expected.refused)
  })
})
