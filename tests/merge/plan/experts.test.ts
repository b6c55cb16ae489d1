// Adapted parameters merged into checkpoints: against what PEFT's merge_and_unload gives and transformers saves of it
// (tests/golden/experts), and against the layers' own arithmetic where chunks matter.

import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import {
  type FloatDtype,
  LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  MismatchError,
  saveAdapter,
  type Tensor,
  UnsupportedError,
} from '../../../src/api/node.js'
import { decodeFloats, encodeFloats } from '../../../src/core/base/dtype.js'
import { Random } from '../../../src/core/base/random.js'
import { elementCount } from '../../../src/core/base/tensor.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { checkpointOf, expectClose, goldenCases, goldenPath, tensorsIn, type Values } from '../../golden.js'
import { some } from '../../thorough.js'
import { mergeFiles } from '../node/disk.js'
import { mergeCheckpoint, normals, unmergeCheckpoint } from '../toolkit.js'

const golden = goldenCases<{ base: string }>('experts')
const cases = golden.map(({ name }) => name)
const folderOf = (name: string) => new NodeDirectory(goldenPath('experts', name))
const baseOf = (name: string) => golden.find((each) => each.name === name)!.expected.base

/** Makes a folder of a golden base. */
async function base(model: string, file = 'fused', dtype: FloatDtype = 'fp32'): Promise<MemoryDirectory> {
  const own = folderOf(`${model}-base`)
  const config = readFileSync(goldenPath('experts', `${model}-base`, 'config.json'), 'utf8')
  return checkpointOf(await tensorsIn(own, `${file}.safetensors`), config, dtype)
}

const scratch = await mkdtemp(path.join(tmpdir(), 'lowrank-experts-'))
afterAll(() => rm(scratch, { recursive: true }))

/** Writes a folder to disk, and returns its path. */
async function onDisk(name: string, { files }: MemoryDirectory): Promise<string> {
  const directory = new NodeDirectory(path.join(scratch, name))
  for (const [file, bytes] of files) {
    const sink = await directory.create(file)
    await sink.write(bytes)
    await sink.commit()
  }
  return path.join(scratch, name)
}

describe.each(some(cases, 2))('%s', (name) => {
  test('into stacked parameters as PEFT merges them; all else stays bit for bit', async () => {
    const from = await base(baseOf(name))
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(from, folderOf(name), out)
    const original = await tensorsIn(from)
    const expected = new Map(original)
    for (const [key, values] of await tensorsIn(folderOf(name), 'tensors.safetensors')) {
      if (key.startsWith('merged.')) expected.set(key.slice('merged.'.length), values)
    }
    const got = await tensorsIn(out)
    expectClose(got, expected, 1e-6)
    for (const [key, values] of original) if (expected.get(key) === values) expect(got.get(key)).toEqual(values)
    const again = new MemoryDirectory({}, 'again')
    await mergeCheckpoint(from, await loadAdapter(folderOf(name)), again)
    expect(await tensorsIn(again)).toEqual(got)
    const back = new MemoryDirectory({}, 'back')
    await unmergeCheckpoint(out, folderOf(name), back)
    expectClose(await tensorsIn(back), original, 1e-5)
  })

  test('in Node, with the same report', async () => {
    const from = await base(baseOf(name))
    const out = new MemoryDirectory({}, 'out')
    const report = await mergeCheckpoint(from, folderOf(name), out)
    const [input, output] = [await onDisk(`${name}-in`, from), path.join(scratch, `${name}-out`)]
    const own = await mergeFiles(input, [goldenPath('experts', name)], output, { threads: 1 })
    expect(await tensorsIn(new NodeDirectory(output))).toEqual(await tensorsIn(out))
    expect(own.changed).toBe(report.changed)
    for (const [i, { name: layer, relativeChange }] of own.layers.entries()) {
      expect(layer).toBe(report.layers[i].name)
      expect(relativeChange).toBeGreaterThan(0)
      expect(relativeChange! / report.layers[i].relativeChange!).toBeCloseTo(1, 10)
    }
  })

  test('into bf16: one rounding of the result', async () => {
    const from = await base(baseOf(name), 'fused', 'bf16')
    const [out, exact] = [new MemoryDirectory({}, 'out'), new MemoryDirectory({}, 'exact')]
    await mergeCheckpoint(from, folderOf(name), out)
    await mergeCheckpoint(from, folderOf(name), exact, { outDtype: 'fp32' })
    const got = await tensorsIn(out)
    for (const [key, { data }] of await tensorsIn(exact)) {
      expect(got.get(key)!.data).toEqual(decodeFloats(encodeFloats(data, 'bf16'), 'bf16'))
    }
  })
})

test.each(cases.filter((name) => existsSync(goldenPath('experts', name, 'saved.safetensors'))))(
  '%s into experts one by one, as transformers saves PEFT’s merged model',
  async (name) => {
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(await base(baseOf(name), 'saved'), folderOf(name), out)
    expectClose(await tensorsIn(out), await tensorsIn(folderOf(name), 'saved.safetensors'), 1e-6)
  },
)

describe('large experts', () => {
  const [experts, d, k, rank] = [2, 1300, 210, 4]
  const name = 'moe.experts.gate_up_proj'
  const random = new Random(5, 'parameter')
  const matrix = (rows: number, columns: number) => {
    return { data: normals(random, rows * columns, 0.1), shape: [rows, columns] as const }
  }

  function adapter(): LoraAdapter {
    const result = new LoraAdapter({ rank, alpha: 8, targetModules: [] })
    result.addExperts(name, matrix(experts * rank, k), matrix(d, experts * rank))
    return result
  }

  test.each([[[experts, d, k]], [[experts, k, d]]])('chunks of two adapters into %j', async (shape) => {
    const data = normals(random, elementCount(shape))
    const adapters = [adapter(), adapter()]
    const from = await checkpointOf(new Map([[name, { data, shape }]]), '{}')
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(from, [{ adapter: adapters[0], weight: 0.5 }, adapters[1]], out)
    const nothing = { data: new Float32Array(data.length), shape }
    const deltas = adapters.map((own) => own.get(name, 'parameter')!.effectiveWeight(nothing).data)
    const sum = data.map((value, i) => value + 0.5 * deltas[0][i] + deltas[1][i])
    expectClose(await tensorsIn(out), new Map([[name, { data: sum, shape }]]), 1e-6)
    const folders: string[] = []
    for (const [i, own] of adapters.entries()) {
      const saved = new MemoryDirectory()
      await saveAdapter(own, saved)
      folders.push(await onDisk(`adapter-${i}-${shape[1]}`, saved))
    }
    const [input, output] = [await onDisk(`input-${shape[1]}`, from), path.join(scratch, `output-${shape[1]}`)]
    await mergeFiles(input, [{ adapter: folders[0], weight: 0.5 }, folders[1]], output, { threads: 1 })
    const bytes = readFileSync(path.join(output, 'model.safetensors'))
    expect(Buffer.compare(bytes, out.files.get('model.safetensors')!)).toBe(0)
  })
})

describe('square experts', () => {
  const [experts, d, rank] = [2, 4, 2]
  const module = 'model.layers.0.mlp.experts'
  const random = new Random(9, 'square')

  function adapter(...shapes: [name: string, d: number, k: number][]): LoraAdapter {
    const result = new LoraAdapter({ rank, alpha: 2, targetModules: [] })
    const matrix = (rows: number, columns: number) => {
      return { data: normals(random, rows * columns), shape: [rows, columns] as const }
    }
    for (const [name, rows, columns] of shapes) {
      result.addExperts(`${module}.${name}`, matrix(experts * rank, columns), matrix(rows, experts * rank))
    }
    return result
  }

  const zeros = (...shape: number[]): Tensor => ({ data: new Float32Array(elementCount(shape)), shape })

  test.each([
    ['as PEFT has it by default', '{}', false],
    ['for GPT-OSS', '{"model_type": "gpt_oss"}', true],
    ['for Qwen3-VL', '{"model_type": "x", "text_config": {"model_type": "qwen3_vl_moe_text"}}', true],
  ])('%s', async (_, config, isInputMajor) => {
    const own = adapter(['down_proj', d, d])
    const out = new MemoryDirectory()
    await mergeCheckpoint(
      await checkpointOf(new Map([[`${module}.down_proj`, zeros(experts, d, d)]]), config),
      own,
      out,
    )
    const parameter = own.get(`${module}.down_proj`, 'parameter')!
    const delta = parameter.effectiveWeight(zeros(experts, d, d), { isInputMajor }).data
    const expected = new Map([[`${module}.down_proj`, { ...zeros(experts, d, d), data: Float32Array.from(delta) }]])
    expectClose(await tensorsIn(out), expected, 1e-6)
  })

  test('as the other parameter of the module is', async () => {
    const own = adapter(['gate_up_proj', 2 * d, d], ['down_proj', d, d])
    for (const isInputMajor of [false, true]) {
      const values: Values = new Map([
        [`${module}.gate_up_proj`, isInputMajor ? zeros(experts, d, 2 * d) : zeros(experts, 2 * d, d)],
        [`${module}.down_proj`, zeros(experts, d, d)],
      ])
      const out = new MemoryDirectory()
      await mergeCheckpoint(await checkpointOf(values, '{}'), own, out)
      const parameter = own.get(`${module}.down_proj`, 'parameter')!
      const delta = parameter.effectiveWeight(zeros(experts, d, d), { isInputMajor }).data
      const got = (await tensorsIn(out)).get(`${module}.down_proj`)!
      expect(Math.max(...delta.map((value, i) => Math.abs(value - got.data[i])))).toBeLessThan(1e-6)
    }
  })
})

test('experts one by one that are stacked without being joined', async () => {
  const adapter = new LoraAdapter({ rank: 1, alpha: 1, targetModules: [] })
  const factors = [
    { data: normals(new Random(1, 'a'), 6), shape: [2, 3] as const },
    { data: normals(new Random(1, 'b'), 8), shape: [4, 2] as const },
  ] as const
  const parameter = adapter.addExperts('model.layers.0.mixer.experts.up_proj', ...factors)
  const values: Values = new Map(
    [0, 1].map((e) => [
      `backbone.layers.0.mixer.experts.${e}.up_proj.weight`,
      { data: new Float32Array(12), shape: [4, 3] },
    ]),
  )
  const out = new MemoryDirectory()
  await mergeCheckpoint(await checkpointOf(values, '{"model_type": "nemotron_h"}'), adapter, out)
  const { data } = parameter.effectiveWeight({ data: new Float32Array(24), shape: [2, 4, 3] })
  const expected = new Map(
    [0, 1].map((e) => [
      `backbone.layers.0.mixer.experts.${e}.up_proj.weight`,
      { data: Float32Array.from(data.subarray(e * 12, e * 12 + 12)), shape: [4, 3] },
    ]),
  )
  expectClose(await tensorsIn(out), expected, 1e-6)
})

describe('what does not fit', () => {
  const merge = async (change: (values: Values) => void, file = 'fused', name = 'mixtral') => {
    const values = await tensorsIn(folderOf(`${baseOf(name)}-base`), `${file}.safetensors`)
    change(values)
    const config = readFileSync(goldenPath('experts', `${baseOf(name)}-base`, 'config.json'), 'utf8')
    return mergeCheckpoint(await checkpointOf(values, config), folderOf(name), new MemoryDirectory())
  }
  const stem = 'model.layers.0.mlp.experts'
  const expert = 'model.layers.0.block_sparse_moe.experts'
  const zeros = (...shape: number[]): Tensor => ({ data: new Float32Array(elementCount(shape)), shape })

  test.each<[string, (values: Values) => void, string, string]>([
    ['a parameter of another shape', (v) => v.set(`${stem}.down_proj`, zeros(3, 8, 9)), 'fused', 'another shape'],
    ['another number of experts', (v) => v.set(`${stem}.down_proj`, zeros(2, 8, 10)), 'fused', 'another shape'],
    ['no such parameter', (v) => v.delete(`${stem}.down_proj`), 'fused', `no weight for ${stem}.down_proj`],
    ['fewer experts', (v) => v.delete(`${expert}.2.w2.weight`), 'saved', 'another number of experts'],
    ['more experts', (v) => v.set(`${expert}.3.w2.weight`, zeros(8, 10)), 'saved', 'another number of experts'],
    ['fewer rows', (v) => v.set(`${expert}.1.w3.weight`, zeros(9, 8)), 'saved', 'another shape'],
    ['fewer columns', (v) => v.set(`${expert}.1.w3.weight`, zeros(10, 7)), 'saved', 'another shape'],
  ])('%s', async (_, change, file, message) => {
    const error = await merge(change, file).catch((reason) => reason)
    expect(error).toBeInstanceOf(MismatchError)
    expect(error.message).toContain(message)
  })

  test('experts in four bits', async () => {
    const merging = merge(
      (values) => {
        values.delete('model.layers.0.mlp.experts.down_proj')
        values.set('model.layers.0.mlp.experts.down_proj_blocks', zeros(3, 8, 2))
      },
      'fused',
      'gpt-oss-down',
    )
    await expect(merging).rejects.toThrow(UnsupportedError)
    await expect(merging).rejects.toThrow('mxfp4')
  })
})
