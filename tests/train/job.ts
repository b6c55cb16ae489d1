// A short training run with texts of its adapter. It runs in the same way in Node and in a page.

import {
  type LoraAdapter,
  MemoryDirectory,
  type Model,
  type TrainReport,
  type TrainSettings,
} from '../../src/api/node.js'
import { generate } from '../../src/run/generate/generate.js'
import { ModelSession } from '../../src/run/model-session.js'
import { train } from '../../src/train/train.js'

export interface Job {
  data: { text: string }[]
  prompt: string
  settings: Partial<TrainSettings>
  /** True to leave out evaluations, texts, and dropout, whose masks are large. */
  isBrief?: boolean
}

export interface JobResult extends Pick<TrainReport, 'runtime' | 'trainLoss' | 'evalLoss'> {
  /** The prompt, continued by the base and by the adapter. */
  texts: string[]
  /** The files that the run wrote. */
  files: string[]
  /** The trained adapter's A and B in the linear layers: all values, layer by layer. */
  factors: number[]
}

export interface JobEvents {
  step?(): void
  trained?(adapter: LoraAdapter): void
}

export async function runJob(model: Model, job: Job, on: JobEvents = {}): Promise<JobResult> {
  const out = new MemoryDirectory()
  const { adapter, report } = await train({
    ...job.settings,
    model,
    data: job.data,
    evalData: job.isBrief ? undefined : job.data.slice(0, 2),
    config: { rank: 4, dropout: job.isBrief ? 0 : 0.1, seed: 3 },
    out,
    on: { step: on.step },
  })
  on.trained?.(adapter)
  const { runtime, trainLoss, evalLoss } = report
  const texts = job.isBrief ? [] : await continued(model, adapter, job)
  const factors = adapter.parts('linear').flatMap(({ weightA, weightB }) => [...weightA.data, ...weightB.data])
  return { runtime, trainLoss, evalLoss, texts, files: await out.list(), factors }
}

async function continued(model: Model, adapter: LoraAdapter, { prompt, settings: { device } }: Job): Promise<string[]> {
  const session = await ModelSession.open(model, { adapters: { trained: adapter }, device })
  const texts = []
  for (const name of [undefined, 'trained']) {
    texts.push((await generate(session, prompt, { adapter: name, maxNewTokens: 8, temperature: 0 })).text)
  }
  await session.dispose()
  return texts
}
