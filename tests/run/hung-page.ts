// The script of hung-page.slow.test.ts in the page: starts a run that never ends in a Web Worker, and then works on.

import { loadModel, MemoryDirectory, webRuntime } from '../../src/api/node.js'
import { ModelSession } from '../../src/run/model-session.js'

export interface HungPageResult {
  /** The name and message of the error of each call. */
  hung: string
  disposed: string
  later: string
  /** The number of workers that were terminated after the session's run. */
  terminated: number
  /** The number of logits from a new session on the same model. */
  logits: number
}

const MODEL = ['config.json', 'generation_config.json', 'tokenizer.json', 'onnx/model.onnx']
const LONG = 60
const SHORT = 3

const feeds = (tokens: number) => ({
  input_ids: { type: 'int64' as const, data: new BigInt64Array(tokens).fill(5n), dims: [1, tokens] },
})
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))
const errorOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'no error',
    (error: Error) => `${error.name}: ${error.message}`,
  )

async function run(): Promise<HungPageResult> {
  let ended = 0
  const terminate = Worker.prototype.terminate
  Worker.prototype.terminate = function (this: Worker) {
    ended++
    terminate.call(this)
  }
  const folder = new MemoryDirectory()
  for (const file of MODEL) {
    const response = await fetch(`/model/${file}`)
    folder.files.set(file, new Uint8Array(await response.arrayBuffer()))
  }
  const model = await loadModel(folder, { runtime: webRuntime('/ort/script.mjs', '/ort/ort.wasm') })

  const session = await ModelSession.open(model)
  await session.run(feeds(SHORT))
  const hung = errorOf(session.run(feeds(LONG)))
  await sleep(500)
  const disposed = await errorOf(session.dispose())
  const later = await errorOf(session.run(feeds(SHORT)))
  const terminated = ended

  const next = await ModelSession.open(model)
  const { logits } = await next.run(feeds(SHORT))
  await next.dispose()
  return { hung: await hung, disposed, later, terminated, logits: logits.data.length }
}

const body = await run().then(JSON.stringify, (error: Error) => JSON.stringify({ failed: error.stack }))
await fetch('/result', { method: 'POST', body })
