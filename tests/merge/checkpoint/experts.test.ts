// Adapted parameters merged into checkpoints: against what PEFT's merge_and_unload gives and transformers saves of it
// (tests/golden/experts), and against the layers' own arithmetic where chunks matter.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import { type Directory, MemoryDirectory } from '../../../src/base/bytes.js'
import { decodeFloats, encodeFloats, type FloatDtype } from '../../../src/base/dtype.js'
import { MismatchError, UnsupportedError } from '../../../src/base/errors.js'
import { Random } from '../../../src/base/random.js'
import { elementCount, type Tensor } from '../../../src/base/tensor.js'
import { parseSafetensorsHeader, readTensorF32, saveSafetensors } from '../../../src/formats/safetensors.js'
import { NodeDirectory } from '../../../src/io/node-files.js'
import { LoraAdapter } from '../../../src/lora/adapter.js'
import { loadAdapter, saveAdapter } from '../../../src/lora/peft.js'
import { mergeCheckpoint } from '../../../src/merge/checkpoint/merge-checkpoint.js'
import { mergeCheckpointFiles } from '../../../src/merge/checkpoint/node-merge.js'
import { unmergeCheckpoint } from '../../../src/merge/checkpoint/unmerge.js'
import { normals } from './toolkit.js'

const root = fileURLToPath(new URL('../../golden/experts', import.meta.url))
const cases = readdirSync(root).filter((name) => !name.endsWith('-base'))
const folderOf = (name: string) => new NodeDirectory(path.join(root, name))
const baseOf = (name: string): string =>
  JSON.parse(readFileSync(path.join(root, name, 'expected.json'), 'utf8')).base as string

type Values = Map<string, Tensor>

async function valuesIn(directory: Directory, file = 'model.safetensors'): Promise<Values> {
  const source = await directory.open(file)
  const parsed = await parseSafetensorsHeader(source)
  const result: Values = new Map()
  for (const name of parsed.tensors.keys()) result.set(name, await readTensorF32(parsed, name))
  await source.close()
  return result
}

async function folder(values: Values, config: string, dtype: FloatDtype = 'F32'): Promise<MemoryDirectory> {
  const directory = new MemoryDirectory({ 'config.json': config }, 'base')
  const tensors = [...values].map(([name, { data, shape }]) => ({
    name,
    dtype,
    shape,
    data: encodeFloats(data, dtype),
  }))
  await saveSafetensors(directory, 'model.safetensors', tensors)
  return directory
}

/** A golden base as a folder. */
async function base(model: string, file = 'fused', dtype: FloatDtype = 'F32'): Promise<MemoryDirectory> {
  const own = folderOf(`${model}-base`)
  const config = readFileSync(path.join(root, `${model}-base`, 'config.json'), 'utf8')
  return folder(await valuesIn(own, `${file}.safetensors`), config, dtype)
}

function expectClose(got: Values, expected: Values, tolerance: number): void {
  expect([...got.keys()].sort()).toEqual([...expected.keys()].sort())
  for (const [name, { data, shape }] of expected) {
    const own = got.get(name)!
    expect(own.shape, name).toEqual(shape)
    const largest = data.reduce((size, value) => Math.max(size, Math.abs(value)), 0)
    let error = 0
    for (let i = 0; i < data.length; i++) error = Math.max(error, Math.abs(own.data[i] - data[i]))
    expect(error / largest, name).toBeLessThan(tolerance)
  }
}

const scratch = await mkdtemp(path.join(tmpdir(), 'lowrank-experts-'))
afterAll(() => rm(scratch, { recursive: true }))

/** Puts a folder on disk and gives its path. */
async function onDisk(name: string, { files }: MemoryDirectory): Promise<string> {
  const directory = new NodeDirectory(path.join(scratch, name))
  for (const [file, bytes] of files) {
    const sink = await directory.create(file)
    await sink.write(bytes)
    await sink.commit()
  }
  return path.join(scratch, name)
}

describe.each(cases)('%s', (name) => {
  test('into stacked parameters as PEFT merges them; all else stays bit for bit', async () => {
    const from = await base(baseOf(name))
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(from, folderOf(name), out)
    const original = await valuesIn(from)
    const expected = new Map(original)
    for (const [key, values] of await valuesIn(folderOf(name), 'tensors.safetensors')) {
      if (key.startsWith('merged.')) expected.set(key.slice('merged.'.length), values)
    }
    const got = await valuesIn(out)
    expectClose(got, expected, 1e-6)
    for (const [key, values] of original) if (expected.get(key) === values) expect(got.get(key)).toEqual(values)
    const again = new MemoryDirectory({}, 'again')
    await mergeCheckpoint(from, await loadAdapter(folderOf(name)), again)
    expect(await valuesIn(again)).toEqual(got)
    const back = new MemoryDirectory({}, 'back')
    await unmergeCheckpoint(out, folderOf(name), back)
    expectClose(await valuesIn(back), original, 1e-5)
  })

  test('in Node, with the same report', async () => {
    const from = await base(baseOf(name))
    const out = new MemoryDirectory({}, 'out')
    const report = await mergeCheckpoint(from, folderOf(name), out)
    const [input, output] = [await onDisk(`${name}-in`, from), path.join(scratch, `${name}-out`)]
    const own = await mergeCheckpointFiles(input, [path.join(root, name)], output, { threads: 1 })
    expect(await valuesIn(new NodeDirectory(output))).toEqual(await valuesIn(out))
    expect(own.changed).toBe(report.changed)
    for (const [i, { name: layer, relativeChange }] of own.layers.entries()) {
      expect(layer).toBe(report.layers[i].name)
      expect(relativeChange).toBeGreaterThan(0)
      expect(relativeChange / report.layers[i].relativeChange).toBeCloseTo(1, 10)
    }
  })

  test('into bf16: one rounding of the result', async () => {
    const from = await base(baseOf(name), 'fused', 'BF16')
    const [out, exact] = [new MemoryDirectory({}, 'out'), new MemoryDirectory({}, 'exact')]
    await mergeCheckpoint(from, folderOf(name), out)
    await mergeCheckpoint(from, folderOf(name), exact, { dtype: 'F32' })
    const got = await valuesIn(out)
    for (const [key, { data }] of await valuesIn(exact)) {
      expect(got.get(key)!.data).toEqual(decodeFloats(encodeFloats(data, 'BF16'), 'BF16'))
    }
  })
})

test.each(cases.filter((name) => existsSync(path.join(root, name, 'saved.safetensors'))))(
  '%s into experts one by one, as transformers saves PEFT’s merged model',
  async (name) => {
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(await base(baseOf(name), 'saved'), folderOf(name), out)
    expectClose(await valuesIn(out), await valuesIn(folderOf(name), 'saved.safetensors'), 1e-6)
  },
)

describe('large experts', () => {
  const [experts, d, k, rank] = [2, 1300, 210, 4]
  const name = 'moe.experts.gate_up_proj'
  const random = new Random(5, 'experts')
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
    const from = await folder(new Map([[name, { data, shape }]]), '{}')
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(from, [{ adapter: adapters[0], weight: 0.5 }, adapters[1]], out)
    const deltas = adapters.map((own) => own.experts.get(name)!.attachBase({ data, shape }).delta().data)
    const sum = data.map((value, i) => value + 0.5 * deltas[0][i] + deltas[1][i])
    expectClose(await valuesIn(out), new Map([[name, { data: sum, shape }]]), 1e-6)
    const folders: string[] = []
    for (const [i, own] of adapters.entries()) {
      const saved = new MemoryDirectory()
      await saveAdapter(own, saved)
      folders.push(await onDisk(`adapter-${i}-${shape[1]}`, saved))
    }
    const [input, output] = [await onDisk(`input-${shape[1]}`, from), path.join(scratch, `output-${shape[1]}`)]
    await mergeCheckpointFiles(input, [{ adapter: folders[0], weight: 0.5 }, folders[1]], output, { threads: 1 })
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
    await mergeCheckpoint(await folder(new Map([[`${module}.down_proj`, zeros(experts, d, d)]]), config), own, out)
    const parameter = own.experts.get(`${module}.down_proj`)!.attachBase(zeros(experts, d, d), { isInputMajor })
    const expected = new Map([
      [`${module}.down_proj`, { ...zeros(experts, d, d), data: Float32Array.from(parameter.delta().data) }],
    ])
    expectClose(await valuesIn(out), expected, 1e-6)
  })

  test('as the other parameter of the module is', async () => {
    const own = adapter(['gate_up_proj', 2 * d, d], ['down_proj', d, d])
    for (const isInputMajor of [false, true]) {
      const values: Values = new Map([
        [`${module}.gate_up_proj`, isInputMajor ? zeros(experts, d, 2 * d) : zeros(experts, 2 * d, d)],
        [`${module}.down_proj`, zeros(experts, d, d)],
      ])
      const out = new MemoryDirectory()
      await mergeCheckpoint(await folder(values, '{}'), own, out)
      const parameter = own.experts.get(`${module}.down_proj`)!.attachBase(zeros(experts, d, d), { isInputMajor })
      const got = (await valuesIn(out)).get(`${module}.down_proj`)!
      expect(Math.max(...parameter.delta().data.map((value, i) => Math.abs(value - got.data[i])))).toBeLessThan(1e-6)
    }
  })
})

test('experts one by one that are stacked without being joined', async () => {
  const adapter = new LoraAdapter({ rank: 1, alpha: 1, targetModules: [] })
  const factors = [
    { data: normals(new Random(1, 'a'), 6), shape: [2, 3] as const },
    { data: normals(new Random(1, 'b'), 8), shape: [4, 2] as const },
  ] as const
  const parameter = adapter.addExperts('mixer.experts.up_proj', ...factors)
  const values: Values = new Map(
    [0, 1].map((e) => [`mixer.experts.${e}.up_proj.weight`, { data: new Float32Array(12), shape: [4, 3] }]),
  )
  const out = new MemoryDirectory()
  await mergeCheckpoint(await folder(values, '{}'), adapter, out)
  const { data } = parameter.delta()
  const expected = new Map(
    [0, 1].map((e) => [
      `mixer.experts.${e}.up_proj.weight`,
      { data: Float32Array.from(data.subarray(e * 12, e * 12 + 12)), shape: [4, 3] },
    ]),
  )
  expectClose(await valuesIn(out), expected, 1e-6)
})

describe('what does not fit', () => {
  const merge = async (change: (values: Values) => void, file = 'fused', name = 'mixtral') => {
    const values = await valuesIn(folderOf(`${baseOf(name)}-base`), `${file}.safetensors`)
    change(values)
    return mergeCheckpoint(await folder(values, '{}'), folderOf(name), new MemoryDirectory())
  }
  const stem = 'model.layers.0.mlp.experts'
  const expert = 'model.layers.0.block_sparse_moe.experts'
  const zeros = (...shape: number[]): Tensor => ({ data: new Float32Array(elementCount(shape)), shape })

  test.each<[string, (values: Values) => void, string, string]>([
    ['a parameter of another shape', (v) => v.set(`${stem}.down_proj`, zeros(3, 8, 9)), 'fused', 'another shape'],
    ['another number of experts', (v) => v.set(`${stem}.down_proj`, zeros(2, 8, 10)), 'fused', 'another shape'],
    ['no such parameter', (v) => v.delete(`${stem}.down_proj`), 'fused', `no weight for ${stem}.down_proj`],
    ['fewer experts', (v) => v.delete(`${expert}.2.w2.weight`), 'saved', 'fewer experts'],
    ['more experts', (v) => v.set(`${expert}.3.w2.weight`, zeros(8, 10)), 'saved', 'more experts'],
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
