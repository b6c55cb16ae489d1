// The script of browser.slow.test.ts in the page: trains and generates in Web Workers, with a model and records that
// the page fetches.

import { type LoraAdapter, loadModel, MemoryDirectory, webRuntime } from '../../src/api/node.js'
import { generate } from '../../src/run/generate/generate.js'
import { ModelSession } from '../../src/run/model-session.js'
import { type Job, type JobResult, runJob } from './job.js'

/** The job of the page, which it fetches first. */
export interface PageJob extends Job {
  /** URLs of ONNX Runtime and its .wasm file. */
  runtime: string
  wasm: string
  /** Files of the model. */
  model: string[]
}

/** The bytes to and from the GPU so far. A script that runs before ONNX Runtime's counts them. */
export type GpuBytes = Record<'up' | 'down' | 'uniform', number>

export interface PageResult extends JobResult {
  /** The number of frames that the page could draw while it trained. It shows that the page stays responsive. */
  ticks: number
  /** The bytes after each step, and after texts of 4, 4 and 20 tokens. */
  gpu: { steps: GpuBytes[]; texts: GpuBytes[] }
}

async function run(): Promise<PageResult> {
  const fetched = async (path: string) => new Uint8Array(await (await fetch(path)).arrayBuffer())
  const job: PageJob = JSON.parse(new TextDecoder().decode(await fetched('/job.json')))
  const folder = new MemoryDirectory()
  for (const file of job.model) folder.files.set(file, await fetched(`/model/${file}`))
  const model = await loadModel(folder, { runtime: webRuntime(job.runtime, job.wasm) })
  let ticks = 0
  const timer = setInterval(() => ticks++, 1)
  const bytes: GpuBytes = { up: 0, down: 0, uniform: 0 }
  new BroadcastChannel('gpu bytes').onmessage = ({ data }) => void Object.assign(bytes, data)
  const gpu: PageResult['gpu'] = { steps: [], texts: [] }
  let adapter: LoraAdapter | undefined
  const result = await runJob(model, job, {
    step: () => gpu.steps.push({ ...bytes }),
    trained(own) {
      clearInterval(timer)
      adapter = own
    },
  })
  const { device } = job.settings
  if (device !== undefined) {
    const session = await ModelSession.open(model, { adapters: { trained: adapter! }, device })
    for (const maxNewTokens of [4, 4, 20]) {
      await generate(session, job.prompt, { adapter: 'trained', maxNewTokens, temperature: 0 })
      // The worker's count may come after its answer.
      await new Promise((resolve) => setTimeout(resolve, 100))
      gpu.texts.push({ ...bytes })
    }
    await session.dispose()
  }
  return { ...result, ticks, gpu }
}

let body: string
try {
  body = JSON.stringify(await run())
} catch (error) {
  body = JSON.stringify({ failed: error instanceof Error ? error.stack : String(error) })
}
await fetch('/result', { method: 'POST', body })
