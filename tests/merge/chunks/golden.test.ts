// Merges equal PEFT's merge_and_unload (tests/golden/merge, made by scripts/golden/merge_models.py and merge_sums.py).

import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { loadAdapter, MemoryDirectory } from '../../../src/api/node.js'
import { encodeWeights } from '../../../src/core/base/dtype.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { some } from '../../thorough.js'
import { fromDisk } from '../node/disk.js'
import {
  compareStored,
  expectedWeight,
  floats,
  mergeCheckpoint,
  type ReadTensor,
  readTensors,
  safetensors,
} from '../toolkit.js'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const golden = `${root}tests/golden`
/** Results of scripts/golden/merge_sums.py for a weight. */
interface Float32Sums {
  sha256: string
  /** [place, bits] of each value that differs from the float64 result. */
  unlikeFloat64: [number, number][]
}
/**
 * The number of values of union-3m for which torch's float32 sum rounds to another bf16, because its matrix product
 * adds in another order.
 */
const UNLIKE_TORCH: Record<string, { differing: number; values: number }> = {
  f32: { differing: 0, values: 294912 },
  rslora: { differing: 1, values: 294912 },
  patterns: { differing: 2, values: 184320 },
  regex: { differing: 0, values: 552960 },
}
/** Tolerances for sums of a few terms around 1. */
const TOLERANCES = { fp32: 1e-6, fp64: 1e-15 }

async function merged(base: MemoryDirectory | NodeDirectory, adapter: string): Promise<Map<string, ReadTensor>> {
  const out = new MemoryDirectory({}, 'out')
  await mergeCheckpoint(base, new NodeDirectory(adapter), out)
  return readTensors(out)
}

async function tensorsOf(file: string): Promise<Map<string, ReadTensor>> {
  const folder = await fromDisk(file.slice(0, file.lastIndexOf('/')))
  const name = file.slice(file.lastIndexOf('/') + 1)
  return readTensors(new MemoryDirectory({ [name]: Uint8Array.from(folder.files.get(name)!) }))
}

function expectClose(actual: ReadTensor, expected: ReadTensor): void {
  const [a, b] = [floats(actual), floats(expected)]
  expect(actual.dtype).toBe(expected.dtype)
  expect(a.length).toBe(b.length)
  expect(Math.max(...[...a].map((value, i) => Math.abs(value - b[i])))).toBeLessThan(
    TOLERANCES[expected.dtype as 'fp32' | 'fp64'],
  )
}

/** Converts a checkpoint to bf16. */
async function inBf16(base: MemoryDirectory): Promise<MemoryDirectory> {
  const list = [...(await readTensors(base))].map(([name, tensor]) =>
    tensor.dtype === 'fp32' || tensor.dtype === 'fp64'
      ? { name, dtype: 'bf16' as const, shape: tensor.shape, data: encodeWeights(floats(tensor), 'bf16') }
      : { name, dtype: tensor.dtype, shape: tensor.shape, data: tensor.bytes },
  )
  const config = base.files.get('config.json')!
  return new MemoryDirectory({ 'config.json': config, 'model.safetensors': await safetensors(list) })
}

describe.each(['llama', 'bert', 'gpt2', 't5', 'phi3', 'gpt-neox', 'llama-f64'])('%s', (model) => {
  const folder = `${golden}/merge/${model}`

  it("gives PEFT's weights", async () => {
    const actual = await merged(new NodeDirectory(`${folder}/base`), `${folder}/adapter`)
    const expected = await tensorsOf(`${folder}/merged.safetensors`)
    expect([...actual.keys()].sort()).toEqual([...expected.keys()].sort())
    for (const [name, tensor] of expected) expectClose(actual.get(name)!, tensor)
  })

  it('gives the float64 result rounded once in bfloat16', async () => {
    const actual = await merged(await inBf16(await fromDisk(`${folder}/base`)), `${folder}/adapter`)
    let [differing, values] = [0, 0]
    for (const [name, tensor] of await tensorsOf(`${folder}/f64.safetensors`)) {
      const { differing: own, ulps } = compareStored(actual.get(name)!.bytes, tensor.bytes, 'bf16')
      expect(ulps).toBeLessThanOrEqual(1)
      differing += own
      values += tensor.bytes.length / 2
    }
    expect(values).toBeGreaterThan(1000)
    // A few values in ten thousand may be so close to a tie that f32 sums round differently.
    expect(differing).toBeLessThanOrEqual(Math.max(1, values * 1e-4))
  })
})

describe.skipIf(!existsSync(`${root}models/union-3m`))('union-3m', () => {
  const base = `${root}models/union-3m`

  it("gives PEFT's float32 weight", async () => {
    const actual = await merged(new NodeDirectory(base), `${golden}/peft/high-rank`)
    for (const [name, tensor] of await tensorsOf(`${golden}/merge/union-high-rank.safetensors`)) {
      expectClose(actual.get(name)!, tensor)
    }
  })

  const names = ['f32', 'rslora', 'patterns', 'regex']

  async function halfBase(): Promise<MemoryDirectory> {
    const { files } = await fromDisk(base)
    const kept = ['config.json', 'model.safetensors'].map((file) => [file, files.get(file)!])
    return inBf16(new MemoryDirectory(Object.fromEntries(kept)))
  }

  it.each(some(names))(
    '%s: at least 9,999 of 10,000 bfloat16 weights are the float64 result, rounded once',
    async (name) => {
      const half = await halfBase()
      const adapter = await loadAdapter(`${golden}/peft/${name}`)
      const before = await readTensors(half)
      const actual = await merged(half, `${golden}/peft/${name}`)
      let [differing, values] = [0, 0]
      for (const [module] of adapter) {
        const expected = expectedWeight(before.get(`${module}.weight`)!, [[adapter, module]])
        differing += compareStored(actual.get(`${module}.weight`)!.bytes, expected, 'bf16').differing
        values += expected.length / 2
      }
      expect(differing / values).toBeLessThanOrEqual(1e-4)
    },
  )

  it.each(some(names))("%s: bfloat16 weights are torch's float32 sums, rounded once", async (name) => {
    const sums = JSON.parse(readFileSync(`${golden}/merge/union-sums.json`, 'utf8'))[name]
    const half = await halfBase()
    const adapter = await loadAdapter(`${golden}/peft/${name}`)
    const before = await readTensors(half)
    const actual = await merged(half, `${golden}/peft/${name}`)
    let [differing, values] = [0, 0]
    for (const [module, { sha256, unlikeFloat64 }] of Object.entries<Float32Sums>(sums)) {
      const bytes = expectedWeight(before.get(`${module}.weight`)!, [[adapter, module]])
      for (const [i, bits] of unlikeFloat64) new DataView(bytes.buffer).setUint16(bytes.byteOffset + 2 * i, bits, true)
      expect(createHash('sha256').update(bytes).digest('hex'), module).toBe(sha256)
      const own = compareStored(actual.get(`${module}.weight`)!.bytes, bytes, 'bf16')
      expect(own.ulps).toBeLessThanOrEqual(1)
      differing += own.differing
      values += bytes.length / 2
    }
    expect({ differing, values }).toEqual(UNLIKE_TORCH[name])
  })
})
