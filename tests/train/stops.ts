// Stops a run at some moment, resumes it, and compares it with an undisturbed run: adapter, metrics, kept weights and
// report.

import { expect } from 'vitest'
import {
  type ByteSink,
  type EvaluationEvent,
  MemoryDirectory,
  type Model,
  type TrainReport,
} from '../../src/api/node.js'
import type { TrainInput } from '../../src/train/options.js'
import { METRICS_FILE } from '../../src/train/saved/run-folder.js'
import { data, trainTiny, WEIGHTS } from './tiny.js'

/** With these options, the evaluation after step 2 is the best. */
const OPTIONS: Partial<TrainInput> = {
  data: data.slice(0, 4),
  evalData: [{ text: 'const q = [0x1f, 0x2e]; // zzz {}' }, { text: '@@@ 12345 %% ~~ 98765 == ||' }],
  batchSize: 1,
  learningRate: 0.05,
  schedule: 'constant',
  warmupRatio: 0,
  maxSteps: 6,
  evalEvery: 2,
  keep: 'best',
  config: { targetModules: ['v_proj', 'down_proj'] },
}

/** A folder that reports each file that is written. */
class WatchedDirectory extends MemoryDirectory {
  readonly #writes: (file: string) => void
  constructor(writes: (file: string) => void) {
    super()
    this.#writes = writes
  }
  override async create(file: string): Promise<ByteSink> {
    this.#writes(file)
    return super.create(file)
  }
}

interface Outcome {
  readonly moments: string[]
  readonly evaluations: EvaluationEvent[]
  readonly steps: number[]
  readonly report: TrainReport
}

/**
 * Runs a training, and stops it at one of its moments: a new stage, progress, a step, an evaluation or a written file.
 * Returns all moments.
 */
export async function runUntil(stop: number, model: Model, out?: MemoryDirectory, options: Partial<TrainInput> = {}) {
  const controller = new AbortController()
  const moments: string[] = []
  const moment = (name: string) => {
    if (moments.push(name) - 1 === stop) controller.abort()
  }
  const [evaluations, steps]: [EvaluationEvent[], number[]] = [[], []]
  const directory = out ?? new WatchedDirectory((file) => moment(`writes ${file}`))
  const on: TrainInput['on'] = {
    stage: (stage) => moment(stage),
    progress: ({ stage, done, total }) => moment(`${stage} ${done}/${total}`),
    step(event) {
      steps.push(event.step)
      moment(`step ${event.step}`)
    },
    evaluation(event) {
      evaluations.push(event)
      moment(`evaluation ${event.step}`)
    },
  }
  const { report } = await trainTiny({ model, ...OPTIONS, ...options, out: directory, signal: controller.signal, on })
  return { directory, outcome: { moments, evaluations, steps, report } satisfies Outcome }
}

function metricsOf(directory: MemoryDirectory): unknown[] {
  const lines = new TextDecoder().decode(directory.files.get(METRICS_FILE)).trimEnd().split('\n')
  return lines.map((line) => JSON.parse(line)).map(({ elapsedMs, ...rest }) => rest)
}

/** The report without values that depend on the clock. */
function lasting({ seconds, stepMillis, peakRssBytes, ...report }: TrainReport): Partial<TrainReport> {
  return report
}

/** Stops a run at each of the chosen moments, resumes it, and compares it with an undisturbed run. */
export async function checkStops(
  model: Model,
  isChosen: (moment: string, index: number) => boolean = () => true,
): Promise<void> {
  const whole = await runUntil(-1, model)
  const { moments, evaluations, steps, report } = whole.outcome
  expect(report, JSON.stringify(evaluations)).toMatchObject({ keptStep: 2, interrupted: false })
  expect(
    metricsOf(whole.directory).filter((line) => (line as { evalLoss?: number }).evalLoss !== undefined),
  ).toHaveLength(2)
  // Before the first step, in steps and evaluations and between them, while it saves, and at the end.
  for (const kind of ['encode', 'prepare 1/2', 'evaluate 0/2', 'step 2', 'evaluation 4', 'save', `writes ${WEIGHTS}`]) {
    expect(moments).toContain(kind)
  }
  let [stopped, count] = [0, 0]
  for (const [index, moment] of moments.entries()) {
    if (!isChosen(moment, index)) continue
    count++
    const first = await runUntil(index, model)
    const told = [first.outcome]
    if (first.outcome.report.interrupted) {
      stopped++
      told.push((await runUntil(-1, model, first.directory, { resume: true })).outcome)
    }
    expect(lasting(told.at(-1)!.report), moment).toEqual(lasting(report))
    expect(first.directory.files.get(WEIGHTS), moment).toEqual(whole.directory.files.get(WEIGHTS))
    expect(metricsOf(first.directory), moment).toEqual(metricsOf(whole.directory))
    expect([...first.directory.files.keys()].sort(), moment).toEqual([...whole.directory.files.keys()].sort())
    // Each step and each evaluation is reported once.
    expect(
      told.flatMap((one) => one.steps),
      moment,
    ).toEqual(steps)
    expect(
      told.flatMap((one) => one.evaluations),
      moment,
    ).toEqual(evaluations)
  }
  expect(stopped).toBeGreaterThan(count / 2)
}
