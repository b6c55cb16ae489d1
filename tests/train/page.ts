// What browser.test.ts runs in a page: training and generating in Web Workers, with a model and records that the page fetches.

import { MemoryDirectory } from '../../src/base/bytes.js'
import { loadModel } from '../../src/graph/model-folder.js'
import { webRuntime } from '../../src/index/web-runtime.js'
import type { TrainSettings } from '../../src/train/settings.js'
import { Trainer } from '../../src/train/trainer.js'
import { continued } from '../infer/continued.js'

export interface PageResult {
  runtime: string
  trainLoss: number[]
  evalLoss: { before: number; after: number } | null
  /** The prompt, continued by the base and by what was trained. */
  texts: string[]
  /** Frames that the page drew or could have drawn while it trained: it stays responsive. */
  ticks: number
  /** What the run wrote. */
  files: string[]
}

/** What the page fetches to know what to do. */
export interface Job {
  runtime: string
  model: string[]
  data: { text: string }[]
  prompt: string
  settings: Partial<TrainSettings>
}

async function run(): Promise<PageResult> {
  const fetched = async (path: string) => new Uint8Array(await (await fetch(path)).arrayBuffer())
  const job: Job = JSON.parse(new TextDecoder().decode(await fetched('/job.json')))
  const folder = new MemoryDirectory()
  for (const file of job.model) folder.files.set(file, await fetched(`/model/${file}`))
  const model = await loadModel(folder, { runtime: webRuntime(job.runtime) })
  const out = new MemoryDirectory()
  let ticks = 0
  const timer = setInterval(() => ticks++, 1)
  const { adapter, report } = await new Trainer({
    ...job.settings,
    model,
    data: job.data,
    evalData: job.data.slice(0, 2),
    config: { rank: 4, dropout: 0.1, seed: 3 },
    out,
  }).train()
  clearInterval(timer)
  const texts = await continued(model, adapter, job.prompt)
  const { runtime, trainLoss, evalLoss } = report
  return { runtime, trainLoss, evalLoss, texts, ticks, files: await out.list() }
}

let body: string
try {
  body = JSON.stringify(await run())
} catch (error) {
  body = JSON.stringify({ failed: error instanceof Error ? error.stack : String(error) })
}
await fetch('/result', { method: 'POST', body })
