import fc from 'fast-check'
import { describe, expect, it, vi } from 'vitest'
import { openTokenFile } from '../../src/node/token-file.js'
import { ExampleStore } from '../../src/text/example-store.js'
import type { Example } from '../../src/text/records.js'

const token = fc.tuple(fc.oneof(fc.nat(300), fc.nat(300_000), fc.nat(2 ** 20)), fc.boolean())
const example = fc.array(token, { maxLength: 40 }).map((tokens): Example => {
  return {
    inputIds: Int32Array.from(tokens, ([id]) => id),
    labels: Int32Array.from(tokens, ([id, counts]) => (counts ? id : -100)),
  }
})

describe('ExampleStore', () => {
  it('gives back what was put in', () => {
    fc.assert(
      fc.property(fc.array(example, { maxLength: 30 }), (examples) => {
        const store = new ExampleStore()
        for (const one of examples) store.push(one)
        expect(store.length).toBe(examples.length)
        expect([...store]).toEqual(examples)
        examples.forEach((one, i) => void expect(store.at(i)).toEqual(one))
        expect([store.at(-1), store.at(examples.length)]).toEqual([undefined, undefined])
      }),
    )
  })

  it('keeps the smallest and the largest id', () => {
    const store = new ExampleStore()
    const inputIds = Int32Array.of(0, 2 ** 31 - 1, 0, 2 ** 31 - 1)
    const labels = Int32Array.of(-100, -100, 0, 2 ** 31 - 1)
    store.push({ inputIds, labels })
    expect(store.at(0)).toEqual({ inputIds, labels })
  })

  it('keeps many, and one that is larger than a block', () => {
    const store = new ExampleStore()
    const long = Int32Array.from({ length: 700_000 }, (_, i) => (i * 7) % 300_007)
    for (let i = 0; i < 5000; i++) store.push({ inputIds: Int32Array.of(i, 2 * i), labels: Int32Array.of(-100, 2 * i) })
    store.push({ inputIds: long, labels: long })
    store.push({ inputIds: Int32Array.of(9), labels: Int32Array.of(-100) })
    for (const i of [0, 77, 4095, 4096, 4097]) expect(store.at(i)?.inputIds).toEqual(Int32Array.of(i, 2 * i))
    expect(store.at(4321)).toEqual({ inputIds: Int32Array.of(4321, 8642), labels: Int32Array.of(-100, 8642) })
    expect(store.at(5000)?.inputIds.every((id, i) => id === long[i])).toBe(true)
    expect(store.at(5001)?.inputIds).toEqual(Int32Array.of(9))
  })

  it('reads from its file what is not in memory', () => {
    const file = openTokenFile()
    const opened = vi.fn(() => file)
    const store = new ExampleStore(opened, 2)
    const lengthOf = (i: number) => 1000 + (i % 7)
    const idOf = (i: number, j: number) => (i * 1009 + j) % 50_000
    const count = 500 // of 1003 tokens on average, 65,536 in a block
    for (let i = 0; i < count; i++) {
      if (i === 100) expect(opened).not.toHaveBeenCalled()
      const inputIds = Int32Array.from({ length: lengthOf(i) }, (_, j) => idOf(i, j))
      store.push({ inputIds, labels: inputIds.map((id, j) => (j < 10 ? -100 : id)) })
    }
    expect(opened).toHaveBeenCalled()
    for (const i of [0, 300, count - 1, 400, 401, 12]) {
      const example = store.at(i)!
      expect(example.inputIds).toHaveLength(lengthOf(i))
      expect(example.inputIds.every((id, j) => id === idOf(i, j))).toBe(true)
      expect(example.labels.subarray(0, 11)).toEqual(Int32Array.of(...Array(10).fill(-100), idOf(i, 10)))
    }
    file.close()
  })
})
