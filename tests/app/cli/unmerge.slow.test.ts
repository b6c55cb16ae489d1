// lowrank unmerge, on the bundled model in f32 and in bf16.

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { decodeWeights } from '../../../src/core/base/dtype.js'
import { lowrankHere } from './in-process.js'
import { MODEL, ONNX, type Outcome, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const adapter = join(root, 'tests', 'golden', 'peft', 'f32')
const other = join(root, 'tests', 'golden', 'peft', 'rslora')
const place = (name: string) => join(scratch, name)

function documentOf({ code, stdout, stderr }: Outcome) {
  expect(code, stderr).toBe(0)
  return JSON.parse(stdout)
}

const merge = (base: string, out: string, ...rest: string[]) =>
  lowrankHere('merge', '--base', base, '--out', out, '--format', 'safetensors', ...rest)
const unmerge = (merged: string, out: string, ...rest: string[]) =>
  lowrankHere('unmerge', '--merged', merged, '--out', out, ...rest)

beforeAll(async () => {
  // An adapter that is added and subtracted at the same time leaves the rounded base.
  const nothing = ['--adapter', adapter, '--adapter', adapter, '--weight', '-1']
  for (const [base, out, ...rest] of [
    [MODEL, 'bf16', ...nothing, '--out-dtype', 'bf16'],
    [place('bf16'), 'merged-bf16', '--adapter', adapter],
    [MODEL, 'merged-f32', '--adapter', adapter, '--adapter', other, '--weight', '0.5'],
  ]) {
    expect((await merge(base, place(out), ...rest)).code).toBe(0)
  }
})

describe('lowrank unmerge', () => {
  it('gives back values up to their last digits', async () => {
    const adapters = ['--adapter', adapter, '--adapter', other, '--weight', '0.5']
    const f32 = documentOf(await unmerge(place('merged-f32'), place('f32'), ...adapters, '--json'))
    expect(f32.changed).toBeGreaterThan(0)
    const [first, last] = [MODEL, place('f32')].map((folder) => {
      const bytes = readFileSync(join(folder, 'model.safetensors'))
      return decodeWeights(Uint8Array.from(bytes.subarray(8 + Number(bytes.readBigUInt64LE()))), 'fp32')
    })
    const largest = [...first].reduce((most, value, i) => Math.max(most, Math.abs(value - last[i])), 0)
    expect(largest).toBeGreaterThan(0)
    expect(largest).toBeLessThan(1e-6)
    expect(existsSync(join(place('f32'), 'config.json'))).toBe(true)
    const bf16 = documentOf(await unmerge(place('merged-bf16'), place('back'), '--adapter', adapter, '--json'))
    expect(bf16.changed).toBeGreaterThan(0)
  })

  it('gives back an .onnx up to the last digits', async () => {
    const [same, merged, back] = ['onnx-same.onnx', 'onnx-merged.onnx', 'onnx-back.onnx'].map(place)
    // An adapter that is added and subtracted at the same time leaves the base, in the form in which lowrank writes it.
    const nothing = ['--adapter', adapter, '--adapter', adapter, '--weight', '-1']
    expect((await lowrankHere('merge', '--base', ONNX, ...nothing, '--out', same)).code).toBe(0)
    expect((await lowrankHere('merge', '--base', ONNX, '--adapter', adapter, '--out', merged)).code).toBe(0)
    expect((await unmerge(merged, back, '--adapter', adapter)).code).toBe(0)
    const [first, between, last] = [same, merged, back].map((file) => readFileSync(file))
    expect([between.length, last.length]).toEqual([first.length, first.length])
    const differing = (other: Buffer) => first.reduce((count, byte, i) => count + (other[i] === byte ? 0 : 1), 0)
    expect(differing(between)).toBeGreaterThan(5e5)
    expect(differing(last)).toBeLessThan(differing(between) / 3)
  })

  it('refuses what cannot be done, and leaves nothing', async () => {
    const missing = await unmerge(place('merged-bf16'), place('missing'))
    expect(missing.code).toBe(2)
    expect(missing.stderr).toMatch(/--adapter DIR\|ID is missing/)
    expect(existsSync(place('missing'))).toBe(false)
  })
})
