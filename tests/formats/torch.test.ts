// Files that torch.save wrote (tests/golden/torch), and damage to them: nothing else than their tensors or an error of
// ours comes out.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type ByteSource, MemorySource } from '../../src/base/bytes.js'
import { LowrankError, UnsupportedError } from '../../src/base/errors.js'
import { parseTorchFile } from '../../src/formats/torch/torch-file.js'
import { runs, STEP } from '../thorough.js'
import { dict, storage, tensor, zip } from './torch-builder.js'

interface Described {
  dtype: string
  shape: number[]
  data: string
}

const root = fileURLToPath(new URL('../golden/torch', import.meta.url))
const read = (name: string) => new Uint8Array(readFileSync(path.join(root, name)))
/** The golden has the names of safetensors. */
const DTYPES: Record<string, string> = { F64: 'fp64', F32: 'fp32', F16: 'fp16', BF16: 'bf16' }
const expected: { loads: Record<string, Record<string, Described>>; refused: Record<string, string> } = JSON.parse(
  new TextDecoder().decode(read('expected.json')),
  (key, value) => (key === 'dtype' ? (DTYPES[value] ?? value) : value),
)

async function load(bytes: Uint8Array): Promise<Record<string, Described>> {
  const { source, tensors } = await parseTorchFile(new MemorySource(bytes, 'adapter_model.bin'))
  const entries: [string, Described][] = []
  for (const [name, { dtype, shape, offset, byteLength }] of tensors) {
    const data = Buffer.from(await source.read(offset, byteLength)).toString('base64')
    entries.push([name, { dtype, shape: [...shape], data }])
  }
  return Object.fromEntries(entries)
}

test.each(Object.keys(expected.loads))('%s: what torch reads', async (name) => {
  const tensors = await load(read(name))
  expect(tensors).toEqual(expected.loads[name])
  expect(Object.keys(tensors)).toEqual(Object.keys(expected.loads[name]))
})

test.each(Object.entries(expected.refused))('%s is refused, naming %s', async (name, named) => {
  const error = await load(read(name)).then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(LowrankError)
  expect(error.message).toMatch(/^adapter_model\.bin/)
  expect(error.message).toContain(named)
})

test('a function is named with its offset, and was not called', async () => {
  const error = await load(read('system.bin')).catch((reason) => reason)
  expect(error).toBeInstanceOf(UnsupportedError)
  expect(error.message).toMatch(
    /^adapter_model\.bin: system\/data\.pkl: byte \d+: the pickle asks for posix\.system, which is refused: .* Nothing was run/,
  )
})

test('contiguous tensors are ranges of the file; with others all are gathered, and the source has no path then', async () => {
  const file = (name: string): ByteSource => Object.assign(new MemorySource(read(name), name), { realPath: `/${name}` })
  const plain = await parseTorchFile(file('plain.bin'))
  expect(plain.source.realPath).toBe('/plain.bin')
  const views = await parseTorchFile(file('views.bin'))
  expect(views.source.realPath).toBeUndefined()
  const { byteLength } = views.source
  expect([...views.tensors.values()].reduce((sum, tensor) => sum + tensor.byteLength, 0)).toBe(byteLength)
})

test('zip64: a storage beyond 4 GiB', async () => {
  const far = 5 * 2 ** 30
  const data = Uint8Array.of(0, 0, 128, 63)
  const pickle = dict({ w: tensor(storage('0', 1), 0, [1], [1]) })
  const near = zip([{ name: 'a/data.pkl', data: pickle }])
  // The archive of one storage, put `far` away from its beginning: only its directory is written for that place.
  const archive = zip(
    [
      { name: 'a/data/0', data, headerOffset: far, zip64: true },
      { name: 'a/data.pkl', data: pickle, headerOffset: 0 },
    ],
    { zip64: true },
  )
  const storageEnd = 30 + 'a/data/0'.length + 5 + data.length
  const rest = archive.subarray(storageEnd + 30 + 'a/data.pkl'.length + 5 + pickle.length)
  const tail = rest.slice()
  const view = new DataView(tail.buffer)
  const directoryBytes = tail.length - 56 - 20 - 22
  view.setBigUint64(directoryBytes + 48, BigInt(far + storageEnd), true)
  view.setBigUint64(directoryBytes + 56 + 8, BigInt(far + storageEnd + directoryBytes), true)
  const pieces: [number, Uint8Array][] = [
    [0, near],
    [far, archive.subarray(0, storageEnd)],
    [far + storageEnd, tail],
  ]
  const source: ByteSource = {
    name: 'large.bin',
    byteLength: far + storageEnd + tail.length,
    close: async () => {},
    read: async (offset, byteLength) => {
      const [start, bytes] = pieces.findLast(([begin]) => begin <= offset)!
      return bytes.slice(offset - start, offset - start + byteLength)
    },
  }
  const { tensors } = await parseTorchFile(source)
  const { offset, byteLength } = tensors.get('w')!
  expect(offset).toBeGreaterThan(2 ** 32)
  expect([...(await source.read(offset, byteLength))]).toEqual([...data])
})

describe('damage', () => {
  const archives = ['plain.bin', 'views.bin', 'parameters.bin'] as const

  /** What loads must be what torch reads: archives have checksums. */
  async function sameOrRefused(bytes: Uint8Array, name: string): Promise<'same' | 'refused'> {
    try {
      expect(await load(bytes)).toEqual(expected.loads[name])
      return 'same'
    } catch (error) {
      if (error instanceof LowrankError) return 'refused'
      throw error
    }
  }

  test.each(archives)('%s: any one byte', async (name) => {
    const original = read(name)
    const outcomes = { same: 0, refused: 0 }
    for (let at = 0; at < original.length; at += STEP) {
      for (const flip of [0x01, 0x80, 0xff]) {
        const bytes = original.slice()
        bytes[at] ^= flip
        outcomes[await sameOrRefused(bytes, name)]++
      }
    }
    expect(outcomes.refused).toBeGreaterThan(1000 / STEP)
    expect(outcomes.same).toBeGreaterThan(100 / STEP)
  })

  test.each(archives)('%s: any end', async (name) => {
    const original = read(name)
    for (let end = 0; end < original.length; end += STEP) {
      expect(await sameOrRefused(original.subarray(0, end), name)).toBe('refused')
    }
  })

  test('several bytes, pieces cut out or repeated', async () => {
    const change = fc.record({ at: fc.nat(), count: fc.nat(40), bytes: fc.uint8Array({ maxLength: 40 }) })
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...archives),
        fc.array(change, { minLength: 1, maxLength: 4 }),
        async (name, changes) => {
          let bytes = read(name)
          for (const { at, count, bytes: other } of changes) {
            const start = at % (bytes.length + 1)
            bytes = Uint8Array.from([...bytes.subarray(0, start), ...other, ...bytes.subarray(start + count)])
          }
          await sameOrRefused(bytes, name)
        },
      ),
      { numRuns: runs(1000) },
    )
  })
})
