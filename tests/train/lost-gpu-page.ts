// The script of lost-gpu.slow.test.ts in the page: loses the GPU in the middle of a training and of a text, and then
// continues.

import { loadModel, MemoryDirectory, webRuntime } from '../../src/api/node.js'
import { generate } from '../../src/run/generate/generate.js'
import { ModelSession } from '../../src/run/model-session.js'
import { train } from '../../src/train/train.js'

export interface LostGpuResult {
  /** Name and message of the error of the training, of the text, and of a later text of the same session. */
  trained: string
  written: string
  later: string
  /** Training losses of the steps before the GPU was lost, and of the run that continued on the processor. */
  before: number[]
  losses: number[]
  /** Files of the run when the GPU was lost. */
  files: string[]
  /** The texts of a new session on WebGPU, and of a session on the processor. */
  again: string
  expected: string
}

const MODEL = ['config.json', 'generation_config.json', 'tokenizer.json', 'onnx/model.onnx']
/** The test's version of ONNX Runtime's script destroys its device when a message comes here. */
const loss = new BroadcastChannel('lose the gpu')

async function run(): Promise<LostGpuResult> {
  const folder = new MemoryDirectory()
  for (const file of MODEL) {
    const response = await fetch(`/model/${file}`)
    folder.files.set(file, new Uint8Array(await response.arrayBuffer()))
  }
  const model = await loadModel(folder, { runtime: webRuntime('/ort/script.mjs', '/ort/ort.wasm') })
  const lose = () => loss.postMessage('now')
  const errorOf = (promise: Promise<unknown>): Promise<string> =>
    promise.then(
      () => 'no error',
      (error: Error) => `${error.name}: ${error.message}`,
    )

  const out = new MemoryDirectory()
  const before: number[] = []
  const settings = {
    model,
    data: ['And the people of', 'In the beginning'].map((text) => ({ text })),
    batchSize: 1,
    maxSteps: 6,
    maxLength: 12,
    config: { rank: 2, seed: 3 },
    saveEvery: 2,
    out,
  }
  const step = ({ step, loss }: { step: number; loss: number }) => {
    before.push(loss)
    if (step === 3) lose()
  }
  const trained = await errorOf(train({ ...settings, device: 'webgpu', on: { step } }))
  const files = await out.list()
  const { report } = await train({ ...settings, device: 'wasm', resume: true })

  const session = await ModelSession.open(model, { device: 'webgpu' })
  const text = { maxNewTokens: 20, temperature: 0 }
  let isLost = false
  const onText = () => {
    if (!isLost) lose()
    isLost = true
  }
  const written = await errorOf(generate(session, 'And the people', { ...text, on: { text: onText } }))
  const later = await errorOf(generate(session, 'And the people', text))
  await session.dispose()
  const textOn = async (device: string) => {
    const next = await ModelSession.open(model, { device })
    const result = await generate(next, 'And the people', { ...text, maxNewTokens: 4 })
    await next.dispose()
    return result.text
  }
  const [again, expected] = [await textOn('webgpu'), await textOn('wasm')]
  return { trained, written, later, before, losses: report.trainLoss, files, again, expected }
}

const body = await run().then(JSON.stringify, (error: Error) => JSON.stringify({ failed: error.stack }))
await fetch('/result', { method: 'POST', body })
