// What browser.slow.test.ts runs in a page: training and generating in Web Workers, with a model and records that the
// page fetches.

import { MemoryDirectory } from '../../src/base/bytes.js'
import { loadModel } from '../../src/graph/model-folder.js'
import { webRuntime } from '../../src/index/platform/web-runtime.js'
import { type Job, type JobResult, runJob } from './job.js'

/** What the page fetches to know what to do. */
export interface PageJob extends Job {
  /** URLs of ONNX Runtime and its .wasm file. */
  runtime: string
  wasm: string
  /** Files of the model. */
  model: string[]
}

export interface PageResult extends JobResult {
  /** Frames that the page drew or could have drawn while it trained: it stays responsive. */
  ticks: number
}

async function run(): Promise<PageResult> {
  const fetched = async (path: string) => new Uint8Array(await (await fetch(path)).arrayBuffer())
  const job: PageJob = JSON.parse(new TextDecoder().decode(await fetched('/job.json')))
  const folder = new MemoryDirectory()
  for (const file of job.model) folder.files.set(file, await fetched(`/model/${file}`))
  const model = await loadModel(folder, { runtime: webRuntime(job.runtime, job.wasm) })
  let ticks = 0
  const timer = setInterval(() => ticks++, 1)
  const result = await runJob(model, job, () => clearInterval(timer))
  return { ...result, ticks }
}

let body: string
try {
  body = JSON.stringify(await run())
} catch (error) {
  body = JSON.stringify({ failed: error instanceof Error ? error.stack : String(error) })
}
await fetch('/result', { method: 'POST', body })
