// Adapters of every kind, merged by several threads, give the same bytes as with a single thread, for all types and
// files of the base.

import { readdirSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { MemoryDirectory, type merge as mergeHere, saveAdapter, type WeightDtype } from '../../../src/api/node.js'
import { encodeWeights } from '../../../src/core/base/dtype.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'
import { makeAdapter, openModel } from '../../run/models.js'
import { mergeCheckpoint, safetensors } from '../toolkit.js'
import { digest, fromDisk, MERGE, toDisk } from './disk.js'

const golden = fileURLToPath(new URL('../../golden/kinds', import.meta.url))
/** All cases except convolutions with groups, which cannot be merged. */
const cases = readdirSync(golden, { withFileTypes: true }).flatMap((entry) =>
  entry.isDirectory() && !entry.name.includes('groups') ? entry.name : [],
)
const THREADS = 3

let scratch: string
let merge: typeof mergeHere
beforeAll(async () => {
  scratch = await mkdtemp(path.join(tmpdir(), 'lowrank-threads-'))
  merge = (await import(MERGE)).merge
})
afterAll(() => rm(scratch, { recursive: true, force: true }))

/** Makes the base of a case in a type, with its tensors divided among three files. */
async function sharded(name: string, dtype: WeightDtype): Promise<MemoryDirectory> {
  const { base } = JSON.parse(readFileSync(path.join(golden, name, 'expected.json'), 'utf8'))
  const directory = new MemoryDirectory({ 'config.json': '{"tie_word_embeddings": false}' }, 'base')
  const source = await new NodeDirectory(golden).open(`${base}.safetensors`)
  const parsed = await parseSafetensorsHeader(source)
  const list = []
  for (const { name: key, shape } of parsed.tensors.values()) {
    const data = encodeWeights((await readTensorF32(parsed, key)).data, dtype)
    list.push({ name: key, dtype, shape, data })
  }
  await source.close()
  const weight_map: Record<string, string> = {}
  for (let i = 0; i < 3; i++) {
    const own = list.filter((_, j) => j % 3 === i)
    if (own.length === 0) continue
    const file = `model-0000${i + 1}-of-00003.safetensors`
    for (const { name: key } of own) weight_map[key] = file
    directory.files.set(file, await safetensors(own))
  }
  directory.files.set('model.safetensors.index.json', Buffer.from(JSON.stringify({ weight_map })))
  return directory
}

/** Each kind gets only one type, because reading and writing a type does not depend on the kind. */
const typed = cases.map((name, i) => [name, i % 2 === 0 ? 'bf16' : 'fp64'] as const)

describe('by threads', () => {
  it.each(typed)('%s in %s', async (name, dtype) => {
    const from = await sharded(name, dtype)
    const expected = new MemoryDirectory()
    const { layers } = await mergeCheckpoint(from, new NodeDirectory(path.join(golden, name)), expected)
    const input = await toDisk(from, path.join(scratch, `${name}-${dtype}`))
    const out = `${input}-out`
    const report = await merge({ base: input, adapters: path.join(golden, name), out, threads: THREADS })
    const { files } = await fromDisk(out)
    files.delete('lowrank-merge.json')
    expect([...files.keys()].sort()).toEqual([...expected.files.keys()].sort())
    for (const [file, bytes] of expected.files) expect(Buffer.compare(files.get(file)!, bytes), file).toBe(0)
    // Threads add up the sums for `relativeChange` in a different order, so its last digits may differ.
    expect(report.layers.map((layer) => layer.name)).toEqual(layers.map((layer) => layer.name))
    layers.forEach(({ relativeChange }, i) => {
      expect(report.layers[i].relativeChange).toBeCloseTo(relativeChange!, 9)
    })
  })
})

it.each(['tests/golden/models/gpt2-optimum', 'tests/golden/models/phi3-genai'])(
  'the .onnx of %s has the bytes of one thread',
  async (base) => {
    const adapters = path.join(scratch, `${path.basename(base)}-adapter`)
    const model = await openModel(base)
    await saveAdapter(makeAdapter(model, /_proj$|c_attn$|c_fc$|lm_head$/), new NodeDirectory(adapters))
    await model.close()
    const files = []
    for (const threads of [1, THREADS]) {
      const out = path.join(scratch, `${path.basename(base)}-${threads}`)
      await merge({ base, adapters, out, threads, format: 'onnx' })
      files.push((await fromDisk(out)).files)
    }
    for (const [name, bytes] of files[0]) {
      if (name !== 'lowrank-merge.json') expect(digest(files[1].get(name)!), name).toBe(digest(bytes))
    }
  },
)
