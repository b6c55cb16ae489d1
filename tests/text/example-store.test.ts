import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ExampleStore } from '../../src/text/packed-examples.js'
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
})
