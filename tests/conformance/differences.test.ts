// Cases in which PEFT's result is not what the adapter means, with both results side by side. docs/conformance.md lists
// them.

import path from 'node:path'
import { describe, expect, test } from 'vitest'
import {
  type FloatDtype,
  LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  saveAdapter,
  type Tensor,
} from '../../src/api/node.js'
import { decodeFloats, encodeFloats } from '../../src/core/base/dtype.js'
import { convertToPlain } from '../../src/merge/tools/to-plain.js'
import { mergeCheckpoint } from '../merge/toolkit.js'
import {
  baseFolder,
  type Cell,
  cells,
  cellTensors,
  type Expected,
  modelTensors,
  readExpected,
  readFolder,
  readTensors,
} from './golden.js'

interface Golden {
  cell: Cell
  expected: Expected
  /** The adapter's folder as PEFT wrote it. */
  files: MemoryDirectory
  tensors: Map<string, Tensor>
}

/** Returns the cells of an option that PEFT does not refuse. */
async function goldens(option: string): Promise<Golden[]> {
  const result: Golden[] = []
  for (const cell of cells) {
    const expected = readExpected(cell)
    if (cell.option !== option || expected === undefined || 'refused' in expected) continue
    const files = readFolder(path.join(cell.folder, 'adapter'))
    result.push({ cell, expected, files, tensors: await cellTensors(cell) })
  }
  expect(result.length).toBeGreaterThan(0)
  return result
}

function configOf({ files }: Golden): Record<string, unknown> {
  return JSON.parse(new TextDecoder().decode(files.files.get('adapter_config.json')))
}

async function merged(
  { cell, expected, files }: Golden,
  dtype: FloatDtype = 'fp32',
): Promise<{ values: Map<string, Tensor>; config: Record<string, unknown> }> {
  const out = new MemoryDirectory()
  const from = await baseFolder(cell, expected, dtype)
  await mergeCheckpoint(from, files, out)
  const config = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
  return { values: modelTensors(from, await readTensors(out.files.get('model.safetensors')!, 'merged')), config }
}

function difference(a: Float32Array, b: Float32Array): number {
  return a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i])), 0)
}

describe.each([
  ['bf16', 'bf16'],
  ['f16', 'fp16'],
] as const)('merging into %s (peft#1388, peft#2502)', (option, dtype) => {
  test('PEFT rounds once, but with safe_merge the change and then the sum; lowrank always rounds once', async () => {
    const wrong = { rounded: 0, safe: 0, ours: 0 }
    let total = 0
    for (const golden of await goldens(option)) {
      const { values } = await merged(golden, dtype)
      for (const [name, { data: exact }] of golden.tensors) {
        if (!name.startsWith('merged.')) continue
        const weight = name.slice('merged.'.length)
        const [rounded, safe] = ['rounded', 'safe'].map((kind) => golden.tensors.get(`${kind}.${weight}`)!.data)
        const ours = values.get(weight)!.data
        decodeFloats(encodeFloats(exact, dtype), dtype).forEach((value, i) => {
          total++
          if (rounded[i] !== value) wrong.rounded++
          if (safe[i] !== value) wrong.safe++
          if (ours[i] !== value) wrong.ours++
        })
      }
    }
    expect(wrong.safe / total).toBeGreaterThan(0.02)
    // An exact value may lie between two rounded values, and the f32 sum on the other side.
    expect(wrong.rounded / total).toBeLessThan(0.001)
    expect(wrong.ours / total).toBeLessThan(0.001)
  })
})

describe('tied embeddings (peft#2018, peft#2777)', () => {
  test('PEFT’s merge changes the output layer too; lowrank’s unties', async () => {
    for (const golden of await goldens('tied-embedding')) {
      const { cell, expected, tensors } = golden
      const base = await readTensors((await baseFolder(cell, expected, 'fp32')).files.get('model.safetensors')!, 'base')
      const { name, weight } = expected.layers.find(({ kind }) => kind === 'embedding')!
      const original = base.get(weight)!.data
      // Before a merge, PEFT changes these rows of the embedding alone. After it, the output layer has the change too.
      const heads = [...tensors.keys()].filter((key) =>
        /^merged\.(lm_head|cls\.predictions\.decoder)\.weight$/.test(key),
      )
      expect(heads, cell.name).toHaveLength(1)
      expect(difference(tensors.get(heads[0])!.data, original)).toBeGreaterThan(0.01)

      const { values, config } = await merged(golden)
      expect(config.tie_word_embeddings).toBe(false)
      const head = [...values.keys()].find((key) => /(lm_head|predictions\.decoder)\.weight$/.test(key))!
      expect(values.get(head)!.data).toEqual(original)
      const rows = values.get(weight)!
      const output = tensors.get(`output.${name}`)!
      const features = rows.shape[1]
      tensors.get(`input.${name}`)!.data.forEach((token, i) => {
        const own = rows.data.subarray(token * features, (token + 1) * features)
        expect(difference(own, output.data.subarray(i * features, (i + 1) * features))).toBeLessThan(1e-6)
      })
    }
  })
})

/** Returns the base's weight with the change of each module added, multiplied by `times`. */
async function withChanges(
  { cell, expected, files }: Golden,
  names: readonly string[],
  times = 1,
): Promise<Float32Array> {
  const base = await readTensors((await baseFolder(cell, expected, 'fp32')).files.get('model.safetensors')!, 'base')
  const adapter = await loadAdapter(files)
  const { weight } = expected.layers.find(({ name }) => name === names[0])!
  const sum = Float64Array.from(base.get(weight)!.data)
  for (const name of names) {
    const embedding = adapter.get(name, 'embedding')
    const zeros = embedding && { data: new Float32Array(sum.length), shape: embedding.shape }
    const { data } = embedding?.effectiveWeight(zeros!) ?? adapter.layer(name).delta()
    for (let i = 0; i < sum.length; i++) sum[i] += times * data[i]
  }
  return Float32Array.from(sum)
}

describe('ensure_weight_tying', () => {
  test('PEFT’s merge adds the change that both uses share twice; lowrank adds it once', async () => {
    let count = 0
    for (const golden of await goldens('ensure-weight-tying')) {
      const { cell, expected, tensors } = golden
      const { name, weight } = expected.layers.find(({ kind }) => kind === 'embedding')!
      const wrong = tensors.get(`wrong.${weight}`)
      // In other cells, PEFT adapts only one use.
      if (wrong === undefined) continue
      count++
      expect(difference(wrong.data, await withChanges(golden, [name], 2)), cell.name).toBeLessThan(1e-5)
      const { values } = await merged(golden)
      expect(difference(values.get(weight)!.data, await withChanges(golden, [name])), cell.name).toBeLessThan(1e-5)
    }
    expect(count).toBeGreaterThan(1)
  })
})

describe('the order of alpha_pattern', () => {
  test('PEFT’s file loses it, and PEFT loads another alpha than it trained; lowrank’s file keeps it', async () => {
    for (const golden of await goldens('patterns-sorted')) {
      const { expected } = golden
      const trained = new Map(Object.entries(expected.trainedAlphas!))
      const changed = expected.layers.filter(({ name, alpha }) => trained.get(name) !== alpha)
      expect(changed.length).toBeGreaterThan(0)

      const loaded = await loadAdapter(golden.files)
      const pattern = Object.entries(loaded.config.alphaPattern)
      const adapter = new LoraAdapter({ ...loaded.config, alphaPattern: Object.fromEntries(pattern.reverse()) })
      for (const { name, weightA, weightB } of loaded.parts('linear')) adapter.addFactors(name, weightA, weightB)
      const saved = new MemoryDirectory()
      await saveAdapter(adapter, saved)
      for (const { name, config } of (await loadAdapter(saved)).parts('linear'))
        expect(config.alpha).toBe(trained.get(name))
    }
  })
})

describe('fan_in_fan_out of Conv1D and Linear layers together (peft#324)', () => {
  test('PEFT saves the last module’s; lowrank goes by the shapes of weights', async () => {
    const golden = (await goldens('head')).find(({ cell }) => cell.architecture === 'gpt2')!
    expect(configOf(golden).fan_in_fan_out).toBe(false)
    const stored = new Map(golden.expected.layers.map(({ name, fanInFanOut }) => [name, fanInFanOut]))
    const square = 'transformer.h.0.attn.c_proj'
    expect([stored.get(square), stored.get('lm_head')]).toEqual([true, false])
    const { values } = await merged(golden)
    for (const name of stored.keys()) {
      const weight = `${name}.weight`
      expect(difference(values.get(weight)!.data, golden.tensors.get(`merged.${weight}`)!.data)).toBeLessThan(5e-6)
    }
  })
})

describe('init_lora_weights: pissa', () => {
  test('PEFT decomposes the base in float32, which near singular values do not bear; lowrank in float64', async () => {
    let worst = { theirs: 0, ours: 0 }
    for (const golden of await goldens('init-pissa')) {
      const { cell, expected, files, tensors } = golden
      const out = new MemoryDirectory()
      const base = await baseFolder(cell, expected, 'fp32')
      await mergeCheckpoint(base, await convertToPlain(await loadAdapter(files), base), out)
      const values = modelTensors(base, await readTensors(out.files.get('model.safetensors')!, 'merged'))
      for (const [key, { data: coarse }] of tensors) {
        if (!key.startsWith('coarse.')) continue
        const name = key.slice('coarse.'.length)
        const exact = tensors.get(`merged.${name}`)!.data
        const size = difference(exact, new Float32Array(exact.length))
        worst = {
          theirs: Math.max(worst.theirs, difference(coarse, exact) / size),
          ours: Math.max(worst.ours, difference(values.get(name)!.data, exact) / size),
        }
      }
    }
    expect(worst.theirs).toBeGreaterThan(1e-4)
    expect(worst.ours).toBeLessThan(1e-6)
  })
})

describe('init_lora_weights: loftq', () => {
  test('PEFT needs bitsandbytes and a GPU; lowrank refuses such adapters by name, since their base is a quantized one', async () => {
    for (const cell of cells.filter(({ option }) => option === 'init-loftq')) {
      expect(readExpected(cell), cell.name).toMatchObject({ refused: expect.stringContaining('bitsandbytes') })
    }
    for (const golden of await goldens('list')) {
      const config = JSON.stringify({ ...configOf(golden), init_lora_weights: 'loftq' })
      golden.files.files.set('adapter_config.json', new TextEncoder().encode(config))
      await expect(loadAdapter(golden.files)).rejects.toThrow(/init_lora_weights: .*loftq/)
    }
  })
})

describe('bias "all" with modules_to_save', () => {
  test('PEFT saves trained biases twice, and untrained ones; lowrank’s file has each once', async () => {
    for (const { cell, files } of await goldens('all-together')) {
      const saved = new MemoryDirectory()
      await saveAdapter(await loadAdapter(files), saved)
      const isCopy = (key: string) => /\.(original_module|modules_to_save)\./.test(key)
      const [theirs, ours] = await Promise.all(
        [files, saved].map((own) => readTensors(own.files.get('adapter_model.safetensors')!, 'adapter')),
      )
      const copies = [...theirs.keys()].filter(isCopy)
      if (['bert', 'gpt2', 'vit'].includes(cell.architecture)) expect(copies.length, cell.name).toBeGreaterThan(0)
      expect([...ours.keys()].sort()).toEqual([...theirs.keys()].filter((key) => !isCopy(key)).sort())
    }
  })
})
