// The wrapper around ONNX Runtime's sessions, with stand-ins for its module.

import { expect, it } from 'vitest'
import { type Feeds, type OrtModule, RuntimeError } from '../../../src/api/node.js'
import { runtimeOf } from '../../../src/onnx/runtime/onnxruntime.js'

it('holds feeds that come again with each run, and lets go of those that do not', async () => {
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

/** Names of tensors come from files, and may equal names of members that all objects have. */
const NAMES = ['__proto__', 'constructor', 'toString']

/** A session that returns its feeds. */
const echo = {
  InferenceSession: {
    create: async () => ({
      inputNames: NAMES,
      outputNames: NAMES,
      run: async (feeds: Record<string, unknown>) => feeds,
      release: async () => {},
    }),
  },
  Tensor: class {
    readonly type: string
    readonly data: unknown
    readonly dims: readonly number[]
    constructor(type: string, data: unknown, dims: readonly number[]) {
      this.type = type
      this.data = data
      this.dims = dims
    }
  },
} as unknown as OrtModule

it('takes and gives tensors with names of members of objects like all others', async () => {
  const session = await runtimeOf(echo, 'echo').createSession({ graph: new Uint8Array() } as never)
  const tensor = (i: number) => ({ type: 'float32' as const, data: Float32Array.of(i), dims: [1] })
  const feeds = Object.fromEntries(NAMES.map((name, i) => [name, tensor(i)]))
  const outputs = await session.run(feeds)
  expect(Object.keys(outputs)).toEqual(NAMES)
  for (const [i, name] of NAMES.entries()) {
    expect(Object.getOwnPropertyDescriptor(outputs, name)?.value.data).toEqual(Float32Array.of(i))
  }
})

/** Messages of onnxruntime-web 1.30 in Chromium (lost-gpu.slow.test.ts) and of a report from Windows. */
const LOST = [
  "map_async_result.status == wgpu::MapAsyncStatus::Success was false. Failed to download data from buffer. wgpu::MapAsyncStatus value: 4, message: Failed to execute 'mapAsync' on 'GPUBuffer': The Device was lost before mapping was resolved.",
  'Failed to create a WebGPU compute pipeline: A valid external Instance reference no longer exists.',
]

/** Opens a session whose first run fails. Later runs and its release would wait for ever. */
async function openFailing(message: string) {
  let runs = 0
  const never = new Promise<never>(() => {})
  const session = {
    inputNames: [],
    outputNames: [],
    run: () => (++runs === 1 ? Promise.reject(new Error(message)) : never),
    release: () => never,
  }
  const module = { InferenceSession: { create: async () => session }, Tensor: Object } as unknown as OrtModule
  return runtimeOf(module).createSession({ graph: new Uint8Array() })
}

it.each(LOST)('a GPU that is lost is named, and no later run waits for it: %s', async (message) => {
  const session = await openFailing(message)
  const first = session.run({})
  await expect(first).rejects.toThrow(RuntimeError)
  await expect(first).rejects.toThrow(/^WebGPU: the GPU was lost.*Open the session again.*resume: true.*device: wasm$/)
  await expect(session.run({})).rejects.toThrow(/the GPU was lost/)
  await session.dispose()
})

it('a lost GPU is no other failure of a run', async () => {
  const session = await openFailing('Non-zero status code returned while running Gather node')
  await expect(session.run({})).rejects.toThrow(/^ONNX Runtime: the run failed/)
})
