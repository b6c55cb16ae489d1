// lowrank unmerge, on the bundled model in f32 and in bf16.

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
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
  // An adapter that is added and taken away at once leaves the rounded base.
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
  it('gives back f32 up to the last digits', async () => {
    const adapters = ['--adapter', adapter, '--adapter', other, '--weight', '0.5']
    const { differences, changed } = documentOf(
      await unmerge(place('merged-f32'), place('f32'), ...adapters, '--original', MODEL, '--json'),
    )
    expect(changed).toBeGreaterThan(0)
    expect(differences.values).toBe(2_976_192)
    expect(differences.differing).toBeGreaterThan(0)
    expect(differences.largest).toBeGreaterThan(0)
    expect(differences.largest).toBeLessThan(1e-6)
    expect(existsSync(join(place('f32'), 'config.json'))).toBe(true)
  })

  it('counts what bf16 has lost, and says by how much', async () => {
    const options = ['--adapter', adapter, '--original', place('bf16')]
    const { code, stdout, stderr } = await unmerge(place('merged-bf16'), place('back'), ...options)
    expect(code).toBe(0)
    expect(stdout).toMatch(/^tensor +differing +values +largest \|Δ\| +steps of the type\nmodel\.layers\./)
    const [, differing, percent] =
      /([\d,]+) of 2,976,192 values \((\S+) %\) differ from the original\. Largest difference: \S+/.exec(stderr)!
    expect(Number(differing.replaceAll(',', ''))).toBeGreaterThan(0)
    expect(Number(percent)).toBeLessThan(50)
    const { differences } = documentOf(await unmerge(place('merged-bf16'), place('again'), ...options, '--json'))
    expect(differences.tensors.length).toBeGreaterThan(0)
    for (const tensor of differences.tensors) {
      expect(tensor.steps).toBeGreaterThanOrEqual(1)
      expect(tensor.largest).toBeLessThanOrEqual(differences.largest)
    }
  })

  it('tells another adapter from the one that was merged', async () => {
    const wrong = documentOf(
      await unmerge(place('merged-bf16'), place('wrong'), '--adapter', other, '--original', place('bf16'), '--json'),
    )
    const right = documentOf(
      await unmerge(place('merged-bf16'), place('right'), '--adapter', adapter, '--original', place('bf16'), '--json'),
    )
    expect(wrong.differences.largest).toBeGreaterThan(2 * right.differences.largest)
  })

  it('says nothing of an original that was not given', async () => {
    const report = documentOf(await unmerge(place('merged-bf16'), place('plain'), '--adapter', adapter, '--json'))
    expect(report.differences).toBeUndefined()
    expect(report.changed).toBeGreaterThan(0)
  })

  it('gives back an .onnx up to the last digits', async () => {
    const [same, merged, back] = ['onnx-same.onnx', 'onnx-merged.onnx', 'onnx-back.onnx'].map(place)
    // An adapter that is added and taken away at once leaves the base, as it is written here.
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
    const onnx = await unmerge(ONNX, place('onnx'), '--adapter', adapter, '--original', ONNX)
    expect(onnx.code).toBe(1)
    expect(onnx.stderr).toMatch(/^error: --original: lowrank cannot compare the values of \.onnx files/)
    const folder = await unmerge(MODEL, place('onnx'), '--adapter', adapter, '--original', MODEL)
    expect([folder.code, folder.stderr]).toEqual([1, expect.stringContaining('cannot compare')])
    const tied = await unmerge(ONNX, place('onnx'), '--adapter', adapter, '--tied', 'keep')
    expect(tied.stderr).toMatch(/^error: --tied: 'keep' is for checkpoints: in an \.onnx file tied embeddings/)
    const missing = await unmerge(place('merged-bf16'), place('missing'), '--original', MODEL)
    expect(missing.code).toBe(2)
    expect(missing.stderr).toMatch(/--adapter DIR\|ID is missing/)
    const absent = await unmerge(place('merged-bf16'), place('absent'), '--adapter', adapter, '--original', place('no'))
    expect(absent.code).toBe(1)
    for (const name of ['onnx', 'missing', 'absent']) expect(existsSync(place(name))).toBe(false)
  })
})
