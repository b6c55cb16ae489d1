// Saving over another adapter, interrupted at every step, never leaves the weights of one adapter with the config of
// the other.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { describe, expect, test } from 'vitest'
import {
  FileError,
  LoraAdapter,
  type LoraConfigInput,
  loadAdapter,
  MemoryDirectory,
  saveAdapter,
} from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import * as peft from '../../../src/lora/peft/adapter-folder.js'
import { inspectAdapter } from '../../../src/lora/peft/inspect.js'

/** Makes an adapter that can be recognized by its config (alpha) and by its weights (a value). */
function make(id: number, alpha = id): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 1, alpha, targetModules: ['q'] })
  adapter.addLayerOfShape('q', [2, 2]).weightB.data.fill(id)
  return adapter
}

const CRASH = new Error('the power went')

/** Fails at the given operation and all later ones, like a crash. Returns a function that counts the operations. */
function crashing(directory: MemoryDirectory, at: number, isPermanent = true): () => number {
  let count = 0
  const guard = <A extends unknown[], R>(operation: (...args: A) => Promise<R>) => {
    return async (...args: A): Promise<R> => {
      const number = count++
      if (isPermanent ? number >= at : number === at) throw CRASH
      return operation(...args)
    }
  }
  const create = directory.create.bind(directory)
  directory.create = guard(async (path: string) => {
    const sink = await create(path)
    return { name: sink.name, write: guard(sink.write), commit: guard(sink.commit), abort: sink.abort }
  })
  directory.remove = guard(directory.remove.bind(directory))
  directory.open = guard(directory.open.bind(directory))
  return () => count
}

async function stateAfter(old: LoraAdapter, next: LoraAdapter, at: number, isPermanent: boolean) {
  const directory = new MemoryDirectory()
  await saveAdapter(old, directory)
  const damaged = new MemoryDirectory()
  for (const [path, bytes] of directory.files) damaged.files.set(path, bytes)
  const operations = crashing(damaged, at, isPermanent)
  const error = await saveAdapter(next, damaged, { overwrite: true }).catch((reason) => reason)
  const left = new MemoryDirectory()
  for (const [path, bytes] of damaged.files) left.files.set(path, bytes)
  const loaded = await loadAdapter(left).catch((reason) => reason)
  return { error, operations: operations(), loaded, files: [...left.files.keys()] }
}

/** Returns alpha from the config and the value from the weights. */
const idsOf = (adapter: LoraAdapter) => [adapter.config.alpha, adapter.layer('q').weightB.data[0]]

describe.each([true, false])('a failure (the last operation of all: %s)', (isPermanent) => {
  test('with another config: the old adapter, the new one, or none', async () => {
    const outcomes = new Set<string>()
    for (let at = 0; ; at++) {
      const { error, operations, loaded } = await stateAfter(make(1), make(2), at, isPermanent)
      if (operations <= at) {
        expect(error).toBeUndefined()
        expect(idsOf(loaded)).toEqual([2, 2])
        break
      }
      if (loaded instanceof FileError) {
        expect(loaded.message).toMatch(/not an adapter folder: no adapter_config\.json/)
        outcomes.add('none')
      } else {
        const ids = idsOf(loaded)
        expect([
          [1, 1],
          [2, 2],
        ]).toContainEqual(ids)
        outcomes.add(ids[0] === 1 ? 'old' : 'new')
      }
    }
    // `new` if a removal fails once, which is tried again, or if nothing fails but the look at the result.
    expect(outcomes).toEqual(new Set(['old', 'none', 'new']))
  })

  test('with the same config: the old adapter or the new one', async () => {
    for (let at = 0; ; at++) {
      const { operations, loaded } = await stateAfter(make(1, 5), make(2, 5), at, isPermanent)
      expect([
        [5, 1],
        [5, 2],
      ]).toContainEqual(idsOf(loaded))
      if (operations <= at) {
        expect(idsOf(loaded)).toEqual([5, 2])
        break
      }
    }
  })
})

test.each([
  ['fp16', 2 ** -11, 2 ** -10],
  ['bf16', 2 ** -8, 2 ** -7],
] as const)('double factors are rounded to %s once', async (dtype, half, step) => {
  // In f32, the sum would be halfway between two values of the type, and the tie would go down.
  const adapter = new LoraAdapter({ rank: 1 })
  adapter.addFactors('q', [[1 + half + 2 ** -30]], [[1]])
  const folder = new MemoryDirectory()
  await saveAdapter(adapter, folder, { dtype })
  expect([...(await loadAdapter(folder)).layer('q').weightA.data]).toEqual([1 + step])
})

test('weights that cannot get their name leave the old adapter', async () => {
  const directory = new MemoryDirectory()
  await saveAdapter(make(1), directory)
  const before = new Map(directory.files)
  const create = directory.create.bind(directory)
  directory.create = async (path) => {
    const sink = await create(path)
    if (path.endsWith('.safetensors')) {
      sink.commit = async () => {
        throw new Error('in use by another process')
      }
    }
    return sink
  }
  await expect(saveAdapter(make(2), directory)).rejects.toThrow('in use by another process')
  expect(directory.files).toEqual(before)
})

test('rows of tokens that the config does not name are named in the folder', async () => {
  const adapter = make(1)
  const row = { dtype: 'fp32', shape: [1, 2], data: new Uint8Array(Float32Array.of(3, 4).buffer) } as const
  adapter.addTokenRows('embed_tokens', [7], row)
  const directory = new MemoryDirectory()
  await saveAdapter(adapter, directory)
  const loaded = await loadAdapter(directory)
  expect(loaded.config.trainableTokenIndices).toEqual({ embed_tokens: [7] })
  expect(loaded.get('embed_tokens[tokens]')).toMatchObject({ module: 'embed_tokens', indices: [7], ...row })
  expect(adapter.config.trainableTokenIndices).toBeUndefined()
})

describe('a new head', () => {
  const headless = (config: LoraConfigInput = {}) => {
    const adapter = new LoraAdapter({ rank: 1, targetModules: ['q'], ...config })
    adapter.addLayerOfShape('q', [2, 2])
    return adapter
  }
  const values = (...shape: number[]) => {
    const data = new Float32Array(shape.reduce((product, dim) => product * dim, 1))
    return { data: data.map((_, i) => i / 4), shape }
  }
  const fieldsOf = (directory: MemoryDirectory) => {
    return JSON.parse(new TextDecoder().decode(directory.files.get('adapter_config.json')))
  }

  test('is saved as modules_to_save, which the config then names, and loads as trained', async () => {
    const adapter = headless({ modulesToSave: ['norm'] })
    adapter.addReplacement('model.norm.weight', values(3))
    adapter.addReplacement('classifier.dense.weight', values(2, 3))
    adapter.addReplacement('classifier.dense.bias', values(2))
    adapter.addReplacement('classifier.out_proj.weight', values(2, 2))
    const directory = new MemoryDirectory()
    await saveAdapter(adapter, directory)
    expect(fieldsOf(directory).modules_to_save).toEqual(['norm', 'classifier.dense', 'classifier.out_proj'])
    const loaded = await loadAdapter(directory)
    expect(loaded.parts('replacement').map(({ name, isTrained }) => [name, isTrained])).toEqual([
      ['classifier.dense.bias', true],
      ['classifier.dense.weight', true],
      ['classifier.out_proj.weight', true],
      ['model.norm.weight', true],
    ])
    expect(loaded.get('classifier.dense.weight', 'replacement')?.weight).toEqual(values(2, 3))
    expect(loaded.totalTrainableParams()).toBe(adapter.totalTrainableParams())
    expect(adapter.config.modulesToSave).toEqual(['norm'])
    const again = new MemoryDirectory()
    await saveAdapter(loaded, again)
    expect(again.files).toEqual(directory.files)
  })

  test('embeddings that are trained are named, those that are only saved along are not', async () => {
    for (const isTrained of [true, false]) {
      const adapter = headless()
      adapter.addReplacement('model.embed_tokens.weight', values(4, 3), { isTrained })
      const directory = new MemoryDirectory()
      await saveAdapter(adapter, directory)
      expect(fieldsOf(directory).modules_to_save).toEqual(isTrained ? ['model.embed_tokens'] : null)
      expect((await loadAdapter(directory)).get('model.embed_tokens.weight')).toMatchObject({ isTrained })
    }
  })

  test('a value that is not finite is named, and nothing is saved', async () => {
    const adapter = headless()
    adapter.addReplacement('classifier.weight', values(2, 3)).weight.data[4] = Number.NaN
    adapter.addTokenRows('embed', [1], { data: Float32Array.of(1, Number.POSITIVE_INFINITY), shape: [1, 2] })
    const directory = new MemoryDirectory()
    await expect(saveAdapter(adapter, directory)).rejects.toThrow(
      /classifier\.weight: holds a value that is not finite/,
    )
    expect(directory.files.size).toBe(0)
    expect((await inspectAdapter(adapter)).problems.map(({ code, message }) => [code, message.split(':')[0]])).toEqual([
      ['NUMERIC', 'classifier.weight'],
      ['NUMERIC', 'embed.weight'],
    ])
  })

  test('biases that the config claims need no name', async () => {
    const adapter = headless({ bias: 'all' })
    adapter.addReplacement('model.norm.bias', values(3))
    const directory = new MemoryDirectory()
    await saveAdapter(adapter, directory)
    expect(fieldsOf(directory).modules_to_save).toBeNull()
  })
})

describe('the adapter of another', () => {
  test('is replaced only with `overwrite`, and from then on is this process’s own', async () => {
    const places = [new MemoryDirectory({}), mkdtempSync(join(tmpdir(), 'lowrank-save-'))]
    for (const place of places) {
      const directory = typeof place === 'string' ? new NodeDirectory(place) : place
      // As another process would write it.
      await peft.saveAdapter(make(1), directory)
      await expect(saveAdapter(make(2), place)).rejects.toMatchObject({
        code: 'FILE',
        hint: expect.stringContaining('overwrite: true'),
      })
      expect((await loadAdapter(place)).config.alpha).toBe(1)
      await saveAdapter(make(2), place, { overwrite: true })
      await saveAdapter(make(3), place)
      expect((await loadAdapter(place)).config.alpha).toBe(3)
    }
    // The same folder by another path.
    const path = places[1] as string
    await saveAdapter(make(4), `${path}/../${basename(path)}`)
    expect((await loadAdapter(path)).config.alpha).toBe(4)
    rmSync(path, { recursive: true })
  })
})
