// What browser.slow.test.ts runs in a page: steps of GRPO, with training and sampling in Web Workers.

import { loadModel, MemoryDirectory, webRuntime } from '../../../src/api/node.js'
import { learnToBeBrief, type RewardedJob } from './rewarded-job.js'

export interface RewardedPage extends RewardedJob {
  /** URLs of ONNX Runtime and its .wasm file. */
  readonly runtime: string
  readonly wasm: string
  /** Files of the model. */
  readonly model: readonly string[]
}

async function run() {
  const fetched = async (path: string) => new Uint8Array(await (await fetch(path)).arrayBuffer())
  const job: RewardedPage = JSON.parse(new TextDecoder().decode(await fetched('/job.json')))
  const folder = new MemoryDirectory()
  for (const file of job.model) folder.files.set(file, await fetched(`/model/${file}`))
  const model = await loadModel(folder, { runtime: webRuntime(job.runtime, job.wasm) })
  return learnToBeBrief(model, job)
}

let body: string
try {
  body = JSON.stringify(await run())
} catch (error) {
  body = JSON.stringify({ failed: error instanceof Error ? error.stack : String(error) })
}
await fetch('/result', { method: 'POST', body })
