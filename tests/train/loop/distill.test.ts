// Distillation compared with TRL's trainers, with a local teacher and one behind a server. Also whole runs.

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadAdapter as loadPublicAdapter, loadModel as open, train } from 'lowrank'
import { createHandler, listen } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  MismatchError,
  type Model,
} from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'
import { IGNORED } from '../../../src/model/text/records.js'
import { openTeacher, sampledDivergence } from '../../../src/train/loop/distill.js'
import { DistilledTokens } from '../../../src/train/loop/distilled-tokens.js'
import { scoredTokens } from '../../../src/train/loop/token-scores.js'
import { Trainer } from '../../../src/train/loop/trainer.js'
import type { TrainInput } from '../../../src/train/options.js'
import { startRun } from '../../../src/train/start-run.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { train as trainOpened } from '../../../src/train/train.js'
import '../../equal-bytes.js'
import { enginesHere } from '../../engines-here.js'
import { relativeError, transposed } from '../../model/golden.js'
import { some } from '../../thorough.js'
import { module, path, WEIGHTS } from '../tiny.js'

const FOLDER = 'tests/golden/distill'

interface Golden {
  adamw: { lr: number; weightDecay: number; maxGradNorm: number }
  temperature: number
  rows: { prompt: number[]; completion: number[] }[]
  teacher: number[][]
  cells: { name: string; losses: number[]; gradNorms: number[] }[]
}

const golden: Golden = JSON.parse(readFileSync(`${FOLDER}/golden.json`, 'utf8'))
const { adamw, temperature } = golden

let union: Model
const scratch = mkdtempSync(join(tmpdir(), 'lowrank-distill-'))
/** A model of the same size, with two tokens of its vocabulary swapped. */
const swapped = join(scratch, 'swapped')
/** A model in whose vocabulary all tokens after the first 100 have moved. */
const turned = join(scratch, 'turned')
beforeAll(enginesHere)
beforeAll(async () => {
  cpSync(path('tests/golden/models/llama-optimum'), swapped, { recursive: true })
  const tokenizer = JSON.parse(readFileSync(join(swapped, 'tokenizer.json'), 'utf8'))
  const { vocab } = tokenizer.model
  ;[vocab.T, vocab.Q] = [vocab.Q, vocab.T]
  writeFileSync(join(swapped, 'tokenizer.json'), JSON.stringify(tokenizer))
  cpSync(swapped, turned, { recursive: true })
  const names = Object.keys(vocab).sort((a, b) => vocab[a] - vocab[b])
  tokenizer.model.vocab = Object.fromEntries(
    names.map((name, id) => [name, id < 100 ? id : 100 + ((id - 90) % (names.length - 100))]),
  )
  writeFileSync(join(turned, 'tokenizer.json'), JSON.stringify(tokenizer))
  union = await loadModel('models/union-3m', { runtime: { module } })
})
afterAll(async () => {
  await union.close()
  rmSync(scratch, { recursive: true })
})

it.each(some(golden.cells, 2))('has the losses and gradients of TRL: $name', async ({ name, losses, gradNorms }) => {
  const adapter = await loadAdapter(`${FOLDER}/adapter-init`)
  const { maxGradNorm, weightDecay, lr } = adamw
  const isServer = name === 'server'
  const teacher = await openTeacher(union, union, { temperature, threads: 1 })
  const distilled = new DistilledTokens(union, temperature, Number(name))
  distilled.teach = teacher.teach
  const task: Task = { ...scoredTokens(false), ...(!isServer && { open: () => distilled as never }) }
  const given = { model: union, data: [], adapter, maxGradNorm, weightDecay, threads: 1, batchSize: 3 }
  const trainer = await Trainer.open(await startRun(given, { task }), {})
  const { inner } = trainer
  for (const step of [0, 1]) {
    const pass = isServer
      ? await trainer.forwardBackward(tokenExamples(), { loss: sampledDivergence })
      : { loss: await inner.forwardBackward(batches()) }
    const norm = await inner.step(pass.loss, lr)
    expect(Math.abs(pass.loss - losses[step])).toBeLessThan(1e-4)
    expect(norm / gradNorms[step]).toBeCloseTo(1, 3)
    if (step === 0) await compareGradients(name, trainer, norm)
  }
  await trainer.dispose()
  await teacher.close()
})

/** Two batches of unequal length, as accumulation makes them. */
function batches() {
  const examples = golden.rows.map(({ prompt, completion }) => ({
    inputIds: Int32Array.from([...prompt, ...completion]),
    labels: Int32Array.from([...prompt.map(() => IGNORED), ...completion]),
  }))
  return [
    { examples: examples.slice(0, 2), length: 16 },
    { examples: examples.slice(2), length: 8 },
  ]
}

function tokenExamples() {
  return golden.rows.map(({ prompt, completion }, i) => ({
    ids: [...prompt, ...completion],
    weights: [...prompt.map(() => 0), ...completion.map(() => 1)],
    reference: [...prompt.map(() => 0), ...golden.teacher[i]],
  }))
}

async function compareGradients(name: string, { inner }: Trainer, norm: number) {
  const source = await new NodeDirectory(FOLDER).open('gradients.safetensors')
  const file = await parseSafetensorsHeader(source)
  const { firstMoments } = await inner.engine.state()
  expect(inner.names).toHaveLength(4)
  // After AdamW's first step, the first moment is a tenth of the clipped gradient.
  const scale = 10 / Math.min(1, adamw.maxGradNorm / (norm + 1e-6))
  for (const [i, parameter] of inner.names.entries()) {
    const [, layer, factor] = /^(.*)\.([AB])$/.exec(parameter)!
    const { data, shape } = await readTensorF32(file, `${name}/base_model.model.${layer}.lora_${factor}.weight`)
    const expected = factor === 'B' ? transposed(data, shape) : data
    const found = firstMoments[i].map((value) => value * scale)
    expect(relativeError(found, expected), parameter).toBeLessThan(1e-4)
  }
  await source.close()
}

describe('a run', () => {
  const options = {
    ...{ task: 'distill' as const, data: ['And the', 'The sea', 'He was'].map((prompt) => ({ prompt })) },
    ...{ batchSize: 3, maxSteps: 3, threads: 1, config: { rank: 4 } },
  } as const
  const start = `${FOLDER}/adapter-init`

  it('comes nearer to its teacher, and goes on to the same bytes', async () => {
    const run = async (given: Partial<TrainInput>) =>
      trainOpened({
        ...options,
        ...(await further()),
        model: union,
        teacher: union,
        learningRate: 5e-3,
        schedule: 'constant',
        warmupSteps: 0,
        ...given,
      })
    const further = async () => ({ config: undefined, adapter: await loadAdapter(start) })
    const taskOptions = { beta: 0.5, maxCompletionLength: 24 }
    const [whole, out] = [new MemoryDirectory(), new MemoryDirectory()]
    const { report } = await run({ taskOptions, out: whole, maxSteps: 8 })
    const [early, late] = [report.trainLoss.slice(0, 3), report.trainLoss.slice(-3)].map(([a, b, c]) => a + b + c)
    expect(late).toBeLessThan(0.7 * early)
    expect(report.samples[0].samples[0].prompt).toMatch(/^(And the|The sea|He was)$/)
    const controller = new AbortController()
    const on = { step: ({ step }: { step: number }) => void (step === 3 && controller.abort()) }
    const cut = await run({ taskOptions, out, maxSteps: 8, signal: controller.signal, on })
    expect(cut.report).toMatchObject({ interrupted: true, steps: 3 })
    await run({ taskOptions, out, maxSteps: 8, resume: true })
    expect(out.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  })

  it('learns from a server, whose probabilities are those of a model at hand', async () => {
    const model = await open('models/union-3m')
    const handler = await createHandler({ model, servedModelName: 'teacher', on: {} })
    const { url, close } = await listen(handler, { port: 0 })
    const taskOptions = { maxCompletionLength: 6, teacherModel: 'teacher' }
    const { report } = await train({
      ...options,
      config: undefined,
      adapter: await loadPublicAdapter(start),
      model,
      teacher: `${url}/v1`,
      taskOptions,
      maxSteps: 1,
      on: {},
    })
    expect(report.trainLoss[0]).toBeGreaterThan(1e-3)
    expect(report.trainLoss.every(Number.isFinite)).toBe(true)
    // A student that is its own teacher has nothing to learn.
    const same = await train({ ...options, model, teacher: `${url}/v1`, taskOptions, maxSteps: 1, on: {} })
    expect(Math.abs(same.report.trainLoss[0])).toBeLessThan(1e-6)
    const refused = train({ ...options, model: turned, teacher: `${url}/v1`, taskOptions })
    await expect(refused).rejects.toThrow(/teacher at http.* has another tokenizer than .*turned/)
    await close()
    await model.close()
  })

  it.each([
    [{}, ConfigError, /teacher.*missing/],
    [{ teacher: { url: 'http://127.0.0.1:1/v1' }, taskOptions: { beta: 0.5 } }, ConfigError, /beta.*server/s],
    [{ teacher: { url: 'http://127.0.0.1:1/v1' } }, ConfigError, /teacherModel/],
  ])('refuses %j', async (given, error, message) => {
    const caught = await trainOpened({ ...options, model: union, ...given }).catch((found) => found)
    expect(caught).toBeInstanceOf(error)
    expect(caught.message).toMatch(message)
  })

  it('refuses the name of a model at a server if the teacher is here', async () => {
    const run = trainOpened({ ...options, model: union, teacher: union, taskOptions: { teacherModel: 'large' } })
    await expect(run).rejects.toMatchObject({ name: 'ConfigError', where: 'teacherModel' })
  })

  it('refuses a teacher with another tokenizer', async () => {
    const teacher = await loadModel(swapped, { runtime: { module } })
    const caught = await trainOpened({ ...options, model: union, teacher }).catch((found) => found)
    expect(caught).toBeInstanceOf(MismatchError)
    expect(caught.message).toMatch(/swapped has another tokenizer than .*union-3m/)
    await teacher.close()
  })
})
