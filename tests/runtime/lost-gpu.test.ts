// A GPU that is lost: the messages are those of onnxruntime-web 1.30 in Chromium (lost-gpu.slow.test.ts) and of a
// report from Windows.

import { expect, it } from 'vitest'
import { RuntimeError } from '../../src/base/errors.js'
import { type OrtModule, runtimeOf } from '../../src/runtime/onnxruntime.js'

const LOST = [
  "map_async_result.status == wgpu::MapAsyncStatus::Success was false. Failed to download data from buffer. wgpu::MapAsyncStatus value: 4, message: Failed to execute 'mapAsync' on 'GPUBuffer': The Device was lost before mapping was resolved.",
  'Failed to create a WebGPU compute pipeline: A valid external Instance reference no longer exists.',
]

/** A session whose first run fails; in later ones, and in its release, it would wait for ever. */
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

it.each(LOST)('is named, and no later run waits for it: %s', async (message) => {
  const session = await openFailing(message)
  const first = session.run({})
  await expect(first).rejects.toThrow(RuntimeError)
  await expect(first).rejects.toThrow(/^WebGPU: the GPU was lost.*Open the session again.*resume: true.*device: wasm$/)
  await expect(session.run({})).rejects.toThrow(/the GPU was lost/)
  await session.dispose()
})

it('is no other failure of a run', async () => {
  const session = await openFailing('Non-zero status code returned while running Gather node')
  await expect(session.run({})).rejects.toThrow(/^ONNX Runtime: the run failed/)
})
