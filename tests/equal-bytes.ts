// `toEqual` compares arrays of numbers by their bytes first: value by value, a weight takes longer than its merge.

import { expect } from 'vitest'

/** Files that share a worker share its testers. */
const ADDED = Symbol.for('lowrank.equal-bytes')

const bytesOf = ({ buffer, byteOffset, byteLength }: ArrayBufferView) => new Uint8Array(buffer, byteOffset, byteLength)

if (!(ADDED in globalThis)) {
  Object.assign(globalThis, { [ADDED]: true })
  expect.addEqualityTesters([
    (a: unknown, b: unknown) => {
      if (!ArrayBuffer.isView(a) || !ArrayBuffer.isView(b) || a.constructor !== b.constructor) return undefined
      // Numbers of other bytes may be equal still, as those that are not numbers are.
      return Buffer.compare(bytesOf(a), bytesOf(b)) === 0 ? true : undefined
    },
  ])
}
