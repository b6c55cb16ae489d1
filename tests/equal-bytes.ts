// Makes `toEqual` compare the bytes of number arrays first. Comparing a weight value by value takes longer than
// merging.

import { expect } from 'vitest'

/** Test files in the same worker share its equality testers, so they are added once. */
const ADDED = Symbol.for('lowrank.equal-bytes')

const bytesOf = ({ buffer, byteOffset, byteLength }: ArrayBufferView) => new Uint8Array(buffer, byteOffset, byteLength)

if (!(ADDED in globalThis)) {
  Object.assign(globalThis, { [ADDED]: true })
  expect.addEqualityTesters([
    (a: unknown, b: unknown) => {
      if (!ArrayBuffer.isView(a) || !ArrayBuffer.isView(b) || a.constructor !== b.constructor) return undefined
      // Different bytes may still be equal numbers, such as different NaNs.
      return Buffer.compare(bytesOf(a), bytesOf(b)) === 0 ? true : undefined
    },
  ])
}
