// Where graphs run: what the runtime has is asked for by name, and what it has not is refused with a list.

import { openSession, train, UnsupportedError } from 'lowrank'
import * as ort from 'onnxruntime-node'
import { describe, expect, it } from 'vitest'
import { RuntimeError } from '../../src/base/errors.js'
import { connect } from '../../src/runtime/rpc.js'
import { webWorkerPort } from '../../src/runtime/web-worker.js'

const UNION = 'models/union-3m'

describe('device', () => {
  const names = ort.listSupportedBackends().map(({ name }) => name)

  it('is refused where ONNX Runtime does not have it, with what it has', async () => {
    const list = new RegExp(`^device: .*expected ${names.join(', ')}, got wasm$`)
    await expect(openSession(UNION, { device: 'wasm' })).rejects.toThrow(list)
    await expect(openSession(UNION, { device: ['cpu', 'wasm'] })).rejects.toThrow(UnsupportedError)
    const data = [{ text: 'And the people of the United States' }]
    await expect(train({ model: UNION, data, device: 'wasm', maxSteps: 1 })).rejects.toThrow(list)
  })

  it('trains on what is asked for', async () => {
    const settings = { model: UNION, data: [{ text: 'And the people' }], maxSteps: 1, threads: 1 }
    const [here, there] = [await train(settings), await train({ ...settings, device: 'cpu' })]
    expect(there.report.trainLoss).toEqual(here.report.trainLoss)
  })
})

describe('a worker whose script is not found', () => {
  it('is an error that names the URL', async () => {
    const worker = { postMessage() {}, terminate() {} } as unknown as Worker
    const url = 'https://example.org/lowrank/infer/worker.js'
    const { remote } = connect<{ run(): void }>(webWorkerPort(worker, url))
    const call = remote.run()
    worker.onerror!({ message: undefined } as unknown as ErrorEvent)
    await expect(call).rejects.toThrow(RuntimeError)
    await expect(call).rejects.toThrow(`${url}: the script of the worker does not load`)
  })
})
