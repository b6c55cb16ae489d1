// Names of tensors come from files, and may be those of members of objects.

import { expect, it } from 'vitest'
import { type OrtModule, runtimeOf } from '../../src/runtime/onnxruntime.js'

const NAMES = ['__proto__', 'constructor', 'toString']

/** Gives back what it is fed. */
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

it('takes and gives tensors of such names like all others', async () => {
  const session = await runtimeOf(echo, 'echo').createSession({ graph: new Uint8Array() } as never)
  const tensor = (i: number) => ({ type: 'float32' as const, data: Float32Array.of(i), dims: [1] })
  const feeds = Object.fromEntries(NAMES.map((name, i) => [name, tensor(i)]))
  const outputs = await session.run(feeds)
  expect(Object.keys(outputs)).toEqual(NAMES)
  for (const [i, name] of NAMES.entries()) {
    expect(Object.getOwnPropertyDescriptor(outputs, name)?.value.data).toEqual(Float32Array.of(i))
  }
})
