// Devices for graphs: the runtime's devices can be chosen by name, and an error for others lists them.

import { openSession, train, UnsupportedError } from 'lowrank'
import * as ort from 'onnxruntime-node'
import { describe, expect, it, vi } from 'vitest'
import { RuntimeError } from '../../../src/api/node.js'
import { connect } from '../../../src/onnx/runtime/rpc.js'
import { startNoted, webWorkerPort } from '../../../src/onnx/runtime/web-worker.js'
import { lowrank } from '../../app/cli/lowrank.js'

const MODEL = 'tests/golden/models/llama-optimum'

describe('device', () => {
  const names = ort.listSupportedBackends().map(({ name }) => name)

  it('is refused where ONNX Runtime does not have it, with what it has', async () => {
    const list = new RegExp(`^device: .*expected ${names.join(', ')}, got wasm$`)
    await expect(openSession(MODEL, { device: 'wasm' })).rejects.toThrow(list)
    await expect(openSession(MODEL, { device: ['cpu', 'wasm'] })).rejects.toThrow(UnsupportedError)
    const data = [{ text: 'And the people of the United States' }]
    await expect(train({ model: MODEL, data, device: 'wasm', maxSteps: 1 })).rejects.toThrow(list)
  })

  it('trains on what is asked for', async () => {
    const settings = { model: MODEL, data: [{ text: 'And the people' }], maxSteps: 1, threads: 1 }
    const [here, there] = [await train(settings), await train({ ...settings, device: 'cpu' })]
    expect(there.report.trainLoss).toEqual(here.report.trainLoss)
  })
})

it.skipIf(!ort.listSupportedBackends().some(({ name }) => name === 'cuda'))(
  'a device whose libraries are missing is one line of lowrank, and none of ONNX Runtime',
  async () => {
    const { code, stderr } = await lowrank('generate', '--model', MODEL, '--prompt', 'The', '--device', 'cuda')
    if (code === 0) return
    expect(stderr).toMatch(/^error: ONNX Runtime: .*Choose --device cpu\n$/)
  },
)

it('a GPU that is not there is told by its name', async () => {
  const { code, stderr } = await lowrank('generate', '--model', MODEL, '--prompt', 'The', '--device', 'webgpu')
  // Dawn prints other lines first.
  if (code !== 0) expect(stderr).toMatch(/^error: ONNX Runtime: .*The device webgpu does not start.*--device cpu$/m)
})

describe('a worker whose script is not found', () => {
  const worker = { postMessage() {}, terminate() {} } as unknown as Worker
  const missed = (worker: Worker, url: string) => {
    const call = connect<{ run(): void }>(webWorkerPort(worker, url)).remote.run()
    worker.onerror!({ message: undefined } as unknown as ErrorEvent)
    return call
  }

  it('is an error that names the URL', async () => {
    const url = 'https://example.org/lowrank/infer/worker.js'
    const call = missed(worker, url)
    await expect(call).rejects.toThrow(RuntimeError)
    await expect(call).rejects.toThrow(`${url}: the script of the worker does not load`)
  })

  it('says what to do about the development server of Vite 7', async () => {
    const call = missed(worker, 'http://localhost:5173/node_modules/.vite/train/worker.js?worker_file&type=module')
    await expect(call).rejects.toThrow("set optimizeDeps: { exclude: ['lowrank'] }")
  })

  it('names the address that a bundler wrote, or that a browser refuses', () => {
    class Refusing {
      constructor() {
        throw new DOMException('cannot be accessed from this origin', 'SecurityError')
      }
    }
    class Taking {}
    const start = () => new Worker(new URL('https://cdn.example.org/assets/worker-1a2b.js'), { type: 'module' })
    try {
      vi.stubGlobal('Worker', Taking)
      const [started, url] = startNoted(start)
      expect(started).toBeInstanceOf(Taking)
      expect(url).toBe('https://cdn.example.org/assets/worker-1a2b.js')
      expect(globalThis.Worker).toBe(Taking)
      vi.stubGlobal('Worker', Refusing)
      expect(() => startNoted(start)).toThrow(RuntimeError)
      expect(() => startNoted(start)).toThrow(/^https:\/\/cdn\.example\.org\/assets\/worker-1a2b\.js: .*own server/)
      expect(globalThis.Worker).toBe(Refusing)
    } finally {
      vi.unstubAllGlobals()
    }
  })
})
