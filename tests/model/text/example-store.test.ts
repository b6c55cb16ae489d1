import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { openExampleFile } from '../../../src/api/node/example-file.js'
import { ExampleStore } from '../../../src/model/text/example-store.js'
import { PackedExamples } from '../../../src/model/text/packed-examples.js'
import type { Example } from '../../../src/model/text/records.js'

const token = fc.tuple(fc.oneof(fc.nat(300), fc.nat(300_000), fc.nat(2 ** 20)), fc.boolean())
const example = fc.array(token, { maxLength: 40 }).map((tokens): Example => {
  return {
    inputIds: Int32Array.from(tokens, ([id]) => id),
    labels: Int32Array.from(tokens, ([id, counts]) => (counts ? id : -100)),
  }
})

/** Fields of examples of other tasks. */
const field = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc.double(),
  fc.boolean(),
  fc.constantFrom(undefined, null, '\ud800', '\ufeffa', Number.NaN, Number.POSITIVE_INFINITY, -0),
  fc.int32Array(),
  fc.uint8Array(),
  fc.float32Array(),
  fc.array(fc.string()),
  example,
  fc.array(fc.record({ inputIds: fc.int32Array(), score: fc.option(fc.double()) }, { noNullPrototype: true })),
)
const names = fc.constantFrom('label', 'where', 'chosen', 'rejected', 'texts', 'tags', '\u00e4')
const record = fc.dictionary(names, field, { noNullPrototype: true })

function naiveRows(lengths: readonly number[], capacity: number): number[][] {
  const order = [...lengths.keys()].sort((a, b) => lengths[b] - lengths[a] || a - b)
  const rows: number[][] = []
  const withRoom: number[][] = Array.from({ length: capacity + 1 }, () => [])
  for (const index of order) {
    const room = withRoom.findIndex((own, size) => size >= lengths[index] && own.length > 0)
    const row = room < 0 ? rows.push([]) - 1 : withRoom[room].pop()!
    rows[row].push(index)
    const left = capacity - rows[row].reduce((sum, one) => sum + lengths[one], 0)
    if (left > 0) withRoom[left].push(row)
  }
  return rows
}

describe('ExampleStore', () => {
  it.each([
    ['texts', example],
    ['other tasks', record],
  ] as [string, fc.Arbitrary<object>][])('gives back what was put in: %s', (_, one) => {
    fc.assert(
      fc.property(fc.array(one, { maxLength: 80 }), fc.boolean(), (examples, isInFile) => {
        const file = openExampleFile()
        const store = new ExampleStore<object>(isInFile ? () => file : undefined)
        for (const own of examples) store.push(own)
        expect(store.length).toBe(examples.length)
        expect([...store]).toStrictEqual(examples)
        examples.forEach((own, i) => void expect(store.at(i)).toStrictEqual(own))
        expect([store.at(-2), store.at(examples.length), store.at(examples.length + 40)]).toEqual(Array(3))
        file.close()
      }),
    )
  })

  it('has what examples are given later', () => {
    const store = new ExampleStore<{ id: number; before?: ArrayLike<number> }>()
    for (let id = 0; id < 40; id++) store.push({ id })
    store.mark(7, [0.5, -2])
    expect([store.at(7), store.at(8)]).toEqual([
      { id: 7, before: Float32Array.of(0.5, -2) },
      { id: 8, before: Float32Array.of(Number.NaN, Number.NaN) },
    ])
  })

  it('keeps what no file can hold', () => {
    const file = openExampleFile()
    const store = new ExampleStore<object>(() => file)
    const picture = { read: () => 1 }
    for (let i = 0; i < 40; i++) store.push({ picture })
    expect(store.at(31)).toEqual({ picture })
    file.close()
  })

  it('reads what is in its file', () => {
    const file = openExampleFile()
    const store = new ExampleStore<Example>(() => file)
    const lengthOf = (i: number) => 1000 + (i % 7)
    const idOf = (i: number, j: number) => (i * 1009 + j) % 50_000
    const count = 500
    for (let i = 0; i < count; i++) {
      const inputIds = Int32Array.from({ length: lengthOf(i) }, (_, j) => idOf(i, j))
      store.push({ inputIds, labels: inputIds.map((id, j) => (j < 10 ? -100 : id)) })
    }
    for (const i of [0, 300, count - 1, 400, 401, 12]) {
      const example = store.at(i)!
      expect(example.inputIds).toHaveLength(lengthOf(i))
      expect(example.inputIds.every((id, j) => id === idOf(i, j))).toBe(true)
      expect(example.labels.subarray(0, 11)).toEqual(Int32Array.of(...Array(10).fill(-100), idOf(i, 10)))
    }
    file.close()
  })
})

describe('PackedExamples', () => {
  it('puts each example into the fullest row that holds it, as a plain search does', () => {
    const lengthsOf = fc.array(fc.integer({ min: 1, max: 40 }), { maxLength: 60 })
    fc.assert(
      fc.property(lengthsOf, fc.integer({ min: 1, max: 50 }), (lengths, capacity) => {
        const examples = lengths.map((length, i) => ({
          inputIds: new Int32Array(length).fill(i),
          labels: new Int32Array(length).fill(i),
        }))
        const rows = [...new PackedExamples(examples, capacity)]
        const members = rows.map(({ inputIds, starts }) => starts.map((start) => inputIds[start]))
        expect(members).toEqual(naiveRows(lengths, capacity))
        expect(rows.map(({ labels }) => labels)).toEqual(rows.map(({ inputIds }) => inputIds))
        expect([...new PackedExamples(examples, capacity).costs]).toEqual(rows.map(({ labels }) => labels.length))
      }),
    )
  })
})
