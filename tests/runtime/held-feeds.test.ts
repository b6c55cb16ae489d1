// Feeds that come again with each run, such as an adapter's factors: they are made ready once, and a run leaves nothing
// of its own in them.

import { expect, it } from 'vitest'
import { type OrtModule, runtimeOf } from '../../src/runtime/onnxruntime.js'
import type { Feeds } from '../../src/runtime/runtime.js'

it('holds what comes again, and lets go of what does not', async () => {
  let made = 0
  const passed: object[] = []
  const seen: Record<string, unknown>[] = []
  const ort = {
    InferenceSession: {
      create: async () => ({
        inputNames: ['x', 'a', 'b'],
        outputNames: [],
        run: async (feeds: Record<string, { data: unknown }>) => {
          passed.push(feeds)
          seen.push(Object.fromEntries(Object.entries(feeds).map(([name, { data }]) => [name, data])))
          if (seen.length === 2) throw new Error('out of memory')
          return {}
        },
        release: async () => {},
      }),
    },
    Tensor: class {
      readonly data: unknown
      constructor(_: string, data: unknown) {
        made++
        this.data = data
      }
    },
  } as unknown as OrtModule
  const session = await runtimeOf(ort, 'fake').createSession({ graph: new Uint8Array() } as never)
  const feed = (...values: number[]) => ({ type: 'float32' as const, data: Float32Array.from(values), dims: [1] })
  const held: Feeds = { a: feed(1), b: feed(2) }
  await session.run({ x: feed(3), b: feed(9) }, undefined, held)
  await expect(session.run({ x: feed(4) }, undefined, held)).rejects.toThrow(/out of memory/)
  expect(Object.keys(passed[1])).toEqual(['a', 'b'])
  await session.run({}, undefined, held)
  const [a, b] = [Float32Array.of(1), Float32Array.of(2)]
  expect(seen).toEqual([
    { a, b, x: Float32Array.of(3) },
    { a, b, x: Float32Array.of(4) },
    { a, b },
  ])
  expect(made).toBe(4)
})
