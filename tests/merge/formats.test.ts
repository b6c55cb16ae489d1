// The kind of model that a merge writes, and the options that each kind supports, from path to path and from folder to
// folder.

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadAdapter, loadModel, MemoryDirectory, merge, planMerge, unmerge } from '../../src/api/node.js'
import { decodeWeights } from '../../src/core/base/dtype.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import * as portable from '../../src/merge/merge.js'
import { loadOnnx } from '../../src/onnx/format/model.js'

const root = path.join(import.meta.dirname, '..', '..')
const MODEL = path.join(root, 'models', 'union-3m')
const ADAPTER = path.join(root, 'tests', 'golden', 'peft', 'f32')

let scratch: string
beforeAll(() => {
  scratch = mkdtempSync(path.join(tmpdir(), 'merge-formats-'))
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const here = { adapters: ADAPTER, threads: 1 } as const
const place = (name: string) => path.join(scratch, name)
const bytesOf = (...parts: string[]) => readFileSync(path.join(...parts))
const same = (one: Buffer | Uint8Array, other: Buffer | Uint8Array) => expect(Buffer.compare(one, other)).toBe(0)

describe('a folder with an .onnx and a checkpoint', () => {
  it('becomes what it is run from, what the result is called, or what is asked for', async () => {
    const cases = [
      ['default', {}, 'onnx'],
      ['asked', { format: 'safetensors' }, 'safetensors'],
      ['named.safetensors', {}, 'safetensors'],
      ['named.onnx', {}, 'onnx'],
      ['chosen', { dtype: 'fp32' }, 'onnx'],
    ] as const
    for (const [name, options, format] of cases) {
      const plan = await planMerge({ base: MODEL, out: place(name), ...here, ...options })
      expect(existsSync(place(name))).toBe(false)
      const report = await merge({ base: MODEL, out: place(name), ...here, ...options })
      expect([plan.format, report.format]).toEqual([format, format])
      for (const key of ['tensors', 'changed', 'copied', 'leftOut', 'added'] as const)
        expect(report[key]).toEqual(plan[key])
      for (const { name: file, byteLength } of plan.files) {
        const written = name.includes('.') ? place(name) : path.join(place(name), file)
        expect(bytesOf(written)).toHaveLength(byteLength)
      }
    }
    expect(readdirSync(place('default'))).toEqual([
      'config.json',
      'generation_config.json',
      'lowrank-merge.json',
      'onnx',
      'tokenizer.json',
      'tokenizer_config.json',
    ])
    same(bytesOf(place('default'), 'onnx', 'model.onnx'), bytesOf(place('named.onnx')))
    same(bytesOf(place('asked'), 'model.safetensors'), bytesOf(place('named.safetensors')))
  })

  it('is replaced as a whole, and unmerged', async () => {
    await expect(merge({ base: MODEL, out: place('default'), ...here })).rejects.toMatchObject({
      code: 'FILE',
      hint: 'Choose another place for the result, or replace it with `overwrite`',
    })
    await merge({ base: MODEL, out: place('default'), ...here, overwrite: true, weightsOnly: true })
    expect(readdirSync(place('default'))).toEqual(['lowrank-merge.json', 'onnx'])
    const { format } = await unmerge({ merged: place('asked'), out: place('back'), ...here })
    expect(format).toBe('safetensors')
    const values = (folder: string) => {
      const bytes = bytesOf(folder, 'model.safetensors')
      const start = 8 + Number(bytes.readBigUInt64LE())
      return Float32Array.from(decodeWeights(Uint8Array.from(bytes.subarray(start)), 'fp32'))
    }
    const [first, last] = [values(MODEL), values(place('back'))]
    expect(first.reduce((most, value, i) => Math.max(most, Math.abs(value - last[i])), 0)).toBeLessThan(1e-6)
  })

  it('is the same from folder to folder', async () => {
    const base = { directory: new NodeDirectory(MODEL) }
    const out = new MemoryDirectory()
    const plan = await portable.planMerge({ base, adapters: new NodeDirectory(ADAPTER), out })
    expect([out.files.size, plan.changed]).toEqual([0, 12])
    const report = await portable.merge({ base, adapters: new NodeDirectory(ADAPTER), out })
    expect(report).toMatchObject({ format: 'onnx', changed: 12 })
    same(out.files.get('onnx/model.onnx')!, bytesOf(place('named.onnx')))
    for (const file of ['config.json', 'tokenizer.json']) same(out.files.get(file)!, bytesOf(MODEL, file))
  })
})

describe('the layout that is asked for', () => {
  it('is written from either layout, with the files of sentence-transformers, and opens', async () => {
    const beside = {
      'modules.json': '[]',
      'config_sentence_transformers.json': '{}',
      'sentence_bert_config.json': '{}',
      '1_Pooling/config.json': '{}',
    }
    const files = (graph: string) => ({
      ...Object.fromEntries(['config.json', 'tokenizer.json'].map((name) => [name, bytesOf(MODEL, name)])),
      ...{ ...beside, [graph]: bytesOf(MODEL, 'onnx', 'model.onnx') },
    })
    const graphs = { 'transformers.js': 'onnx/model.onnx', optimum: 'model.onnx' } as const
    for (const from of Object.values(graphs)) {
      const base = new MemoryDirectory(files(from))
      for (const layout of [undefined, 'transformers.js', 'optimum'] as const) {
        const out = new MemoryDirectory()
        await merge({ base, adapters: ADAPTER, out, layout })
        const graph = layout === undefined ? from : graphs[layout]
        expect([...out.files.keys()].sort()).toEqual(Object.keys(files(graph)).sort())
        await (await loadModel(out)).close()
      }
    }
    await expect(merge({ base: MODEL, ...here, out: place('one.onnx'), layout: 'optimum' })).rejects.toThrow(/layout/)
  })
})

describe('what a format cannot honor is refused by name, and nothing is left', () => {
  const options = [
    ['tied', 'keep'],
    ['outDtype', 'fp16'],
    ['maxShardBytes', 1e6],
  ] as const

  it.each(options)('%s %j in an .onnx', async (name, value) => {
    for (const make of [merge, planMerge]) {
      const work = make({ base: MODEL, adapters: ADAPTER, out: place('refused'), [name]: value })
      await expect(work).rejects.toMatchObject({
        code: 'UNSUPPORTED',
        where: name,
        got: "a result in the format 'onnx'",
      })
    }
    expect(readdirSync(scratch).filter((file) => file.startsWith('refused'))).toEqual([])
  })

  it.each([
    ['dtype', 'q4'],
    ['modules', {}],
  ])('%s in safetensors', async (name, value) => {
    const work = merge({ base: MODEL, out: place('refused'), ...here, format: 'safetensors', [name]: value })
    await expect(work).rejects.toMatchObject({ code: 'UNSUPPORTED', where: name })
  })

  it('and what each honors is done', async () => {
    const done = { tied: 'untie', outDtype: 'keep', weightsOnly: true } as const
    const report = await merge({ base: MODEL, out: place('done.onnx'), ...here, ...done })
    expect(report).toMatchObject({ format: 'onnx', changed: 12 })
    // Compares some elements with W + s·B·A, computed by plain loops in f64. The merged weight is f32, so it may differ
    // by rounding.
    const [from, to] = [
      await loadOnnx(new NodeDirectory(MODEL), 'onnx/model.onnx'),
      await loadOnnx(new NodeDirectory(scratch), 'done.onnx'),
    ]
    const adapter = await loadAdapter(ADAPTER)
    const weightsOf = async (model: typeof from) =>
      new Map(
        await Promise.all(
          (model.proto.graph?.initializer ?? []).map(async (tensor) => {
            const count = tensor.dims.reduce((product, size) => product * Number(size), 1)
            const bytes = tensor.dataType === 1 ? await model.readTensor(tensor, 0, 4 * count) : new Uint8Array()
            return [tensor.name, new Float32Array(Uint8Array.from(bytes).buffer)] as const
          }),
        ),
      )
    const [before, after] = [await weightsOf(from), await weightsOf(to)]
    const changed = [...after].filter(([name, values]) => values.some((value, i) => value !== before.get(name)?.[i]))
    expect(changed).toHaveLength(12)
    const { weightA, weightB, scaling } = adapter.layer('model.layers.0.self_attn.q_proj')
    const [rank, k] = weightA.shape
    const [d] = weightB.shape
    const isMerged = changed.some(([name, values]) => {
      const base = before.get(name)
      if (base === undefined || values.length !== d * k) return false
      return [0, 1, k + 3, d * k - 1].every((at) => {
        // The graph has the weight as (k, d).
        const [j, i] = [Math.floor(at / d), at % d]
        let product = 0
        for (let p = 0; p < rank; p++) product += weightB.data[i * rank + p] * weightA.data[p * k + j]
        return Math.abs(values[at] - (base[at] + scaling * product)) < 1e-7
      })
    })
    expect(isMerged).toBe(true)
    await from.close()
    await to.close()
  })

  it('as are options that only paths can, and formats that names contradict', async () => {
    const base = { directory: new NodeDirectory(MODEL), file: 'model.safetensors' }
    const adapters = new NodeDirectory(ADAPTER)
    const work = portable.merge({ base, adapters, out: new MemoryDirectory(), format: 'onnx' })
    await expect(work).rejects.toMatchObject({ code: 'CONFIG', where: 'format' })
    const named = merge({ base: MODEL, out: place('named.onnx'), ...here, format: 'safetensors' })
    await expect(named).rejects.toMatchObject({ code: 'CONFIG', where: 'format' })
    mkdirSync(place('plain'))
    writeFileSync(path.join(place('plain'), 'model.safetensors'), bytesOf(MODEL, 'model.safetensors'))
    const absent = merge({ base: place('plain'), out: place('refused'), ...here, format: 'onnx' })
    await expect(absent).rejects.toMatchObject({ code: 'FILE', what: 'no ONNX model in this folder' })
  })
})
