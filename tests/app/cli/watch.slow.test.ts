// The outputs of a run while it trains: answers to prompts, evaluations, and the page in its folder.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type EvaluationEvent, loadModel, openSession, train } from 'lowrank'
import { beforeAll, expect, it } from 'vitest'
import { reportPage } from '../../../src/api/report/page.js'
import { runReport } from '../../../src/api/report/run.js'
import { enginesHere } from '../../engines-here.js'
import { lowrankHere } from './in-process.js'
import { root, scratchFolder } from './lowrank.js'

beforeAll(enginesHere)

const scratch = scratchFolder()
const read = (...path: string[]) => readFileSync(join(...path), 'utf8')
const MODEL = join(root, 'tests/golden/models/llama-optimum')
const data = ['The sea was calm.', 'And the people went out.', 'A <b>good</b> day.'].map((text) => ({ text }))
const config = { rank: 2 }
const settings = { data, evalData: data, evalEvery: 2, maxSteps: 5, learningRate: 1e-2, threads: 1, config, on: {} }

it('answers prompts before, at each evaluation and at the end, and saves the same bytes', async () => {
  const [plain, sampled] = [join(scratch, 'plain'), join(scratch, 'sampled')]
  const without = await train({ ...settings, model: MODEL, out: plain })
  const seen: number[] = []
  const on = { sample: ({ step }: { step: number }) => void seen.push(step) }
  const sample = ['The sea', 'And']
  const { adapter, report } = await train({ ...settings, model: MODEL, out: sampled, sample, on })
  expect(seen).toEqual([0, 2, 4, 5])
  expect(report.samples.map(({ step }) => step)).toEqual(seen)
  expect(without.report.samples).toEqual([])
  for (const file of ['adapter_model.safetensors', 'adapter_config.json']) {
    expect(read(sampled, file)).toBe(read(plain, file))
  }
  expect(report.evaluations).toEqual(without.report.evaluations)
  expect(report.evaluations.map(({ step }: EvaluationEvent) => step)).toEqual([0, 2, 4, 5])
  const lines = read(sampled, 'evaluations.jsonl').trim().split('\n')
  expect(lines.map((line) => JSON.parse(line).step)).toEqual([0, 0, 2, 2, 4, 4, 5, 5])
  // A session with a cache writes the same text.
  const model = await loadModel(MODEL)
  const session = await openSession(model, { adapters: { own: adapter }, threads: 1 })
  for (const [at, choice] of [
    [0, null],
    [3, 'own'],
  ] as const) {
    const texts = await session.generate(sample, { adapter: choice, temperature: 0, maxNewTokens: 40 })
    expect(report.samples[at].samples).toEqual(texts.map(({ text }, i) => ({ prompt: sample[i], text })))
  }
  await session.dispose()
  await model.close()
  const page = read(sampled, 'report.html')
  expect(page).toContain('lowrank report')
  for (const part of ['"Loss"', '"Answers"', '"Norm of the gradients"', '"Settings"', '"Layers"']) {
    expect(page).toContain(part)
  }
})

it('resumes with the evaluations and answers of before', async () => {
  const [whole, halves] = [join(scratch, 'whole'), join(scratch, 'halves')]
  const options = { ...settings, model: MODEL, sample: ['The sea'] }
  const { report } = await train({ ...options, out: whole })
  const stop = new AbortController()
  const on = { step: ({ step }: { step: number }) => step === 3 && stop.abort() } as object
  await train({ ...options, out: halves, on, signal: stop.signal })
  const resumed = await train({ ...options, out: halves, resume: true })
  expect(resumed.report.samples).toEqual(report.samples)
  expect(read(halves, 'evaluations.jsonl')).toBe(read(whole, 'evaluations.jsonl'))
})

it('tells of the data: lengths and labels on the page, and a prompt on the card, whatever is in it', async () => {
  const out = join(scratch, 'labels')
  const text = "It's `$(rm -rf ~)` \u202ewet.\n```\n<script>"
  const rows = ['x', 'y', 'x'].map((label) => ({ text: label === 'y' ? 'And the people of the sea' : text, label }))
  const model = join(root, 'tests/golden/text-classification/classifier')
  await train({ model, data: rows, out, maxSteps: 1, threads: 1, config, on: {} })
  const card = read(out, 'README.md')
  expect(card).toContain(`--text 'It'\\''s \`$(rm -rf ~)\` wet. \`\`\` <script>'`)
  expect(card).toContain("run('It\\'s `$(rm -rf ~)` wet. ``` <script>', { adapter: 'mine' })")
  const page = read(out, 'report.html')
  expect(page).toMatch(/\["lengths of records","\d+ to \d+ tokens, the median \d+"\]/)
  expect(page).toContain('["labels","x (2), y (1)"]')
})

it('names the first evaluation record on the card, cut between words', async () => {
  const out = join(scratch, 'asked')
  const evalData = [{ text: 'Who goes there? '.repeat(20) }]
  await train({ ...settings, model: MODEL, evalData, maxSteps: 1, out })
  expect(read(out, 'README.md')).toContain(`--prompt "${'Who goes there? '.repeat(5).trim()}"`)
})

it('compares runs on one page, from the command line', async () => {
  const html = join(scratch, 'runs.html')
  const runs = [join(scratch, 'plain'), join(scratch, 'whole')]
  const { code, stdout, stderr } = await lowrankHere('report', ...runs, '--html', html)
  expect([code, stdout], stderr).toEqual([0, ''])
  const [, data] = />(\{"title".*?)<\/script>/s.exec(read(html))!
  const { sections } = JSON.parse(data)
  const titled = (title: string) => sections.find((one: { title?: string }) => one.title === title)
  expect(titled('Loss').series.map(({ name }: { name: string }) => name)).toEqual(
    ['training', 'evaluation'].flatMap((word) => runs.map((run) => `${run}: ${word}`)),
  )
  expect(titled('Evaluations').rows.map(([name]: string[]) => name)).toContain(runs[1])
  expect(titled(`Answers of ${runs[1]}`).samples[0]).toMatchObject({ prompt: 'The sea' })
  const again = await lowrankHere('report', ...runs, '--html', html)
  expect([again.code, again.stderr]).toEqual([1, expect.stringMatching(/runs.html.*--overwrite/)])
  expect((await lowrankHere('report', runs[0], '--html', html, '--overwrite')).code).toBe(0)
  expect(read(html)).not.toContain(runs[1])
  const none = await lowrankHere('report', join(scratch, 'nothing'), '--html', join(scratch, 'none.html'))
  expect([none.code, none.stderr]).toEqual([1, expect.stringMatching(/nothing/)])
})

it('refuses answers of tasks that write none', async () => {
  const model = join(root, 'tests/golden/text-classification/classifier')
  const rows = [
    { text: 'a', label: 'x' },
    { text: 'b', label: 'y' },
  ]
  const run = train({
    model,
    data: rows,
    task: 'text-classification',
    taskOptions: {},
    sample: ['a'],
    maxSteps: 1,
    on: {},
  })
  await expect(run).rejects.toThrow(/sample: the task text-classification writes no texts while it trains.*`evalData`/)
})

it('makes a page of 10,000 steps that is below 400 kB, with texts that stay texts', () => {
  const steps = Array.from({ length: 10_000 }, (_, i) => {
    return { step: i + 1, loss: 3 + Math.sin(i) / 7, learningRate: i / 3e7, gradientNorm: 1 / (i + 1.3) }
  })
  const evaluations = Array.from({ length: 100 }, (_, i) => ({
    step: i * 100,
    loss: 3 / (i + 1),
    metrics: { perplexity: i },
  }))
  const hostile = '</script><script>alert(1)</script>'
  const samples = [{ step: 0, samples: [{ prompt: hostile, text: hostile }] }]
  const run = { name: hostile, steps, evaluations, samples, settings: { a: hostile } }
  const page = reportPage(runReport([run], hostile))
  expect(page.length).toBeLessThan(400_000)
  expect(page).not.toContain(hostile)
  const two = runReport([run, { ...run, name: 'b', settings: { a: 'b' } }], 'both')
  expect(JSON.stringify(two.sections)).toContain('Settings that differ')
  expect(page).toContain('color-scheme:light dark')
})

it('makes a finished run longer: with a constant schedule, to the bytes of one long run', async () => {
  const warnings: string[] = []
  const on = { warning: (message: string) => void warnings.push(message) }
  const run = (out: string, maxSteps: number, more: object = {}) =>
    train({ model: MODEL, data, batchSize: 1, learningRate: 1e-2, threads: 1, config, on, out, maxSteps, ...more })
  const [whole, parts] = [join(scratch, 'long'), join(scratch, 'parts')]
  const constant = { schedule: 'constant', warmupRatio: 0 }
  await run(whole, 5, constant)
  await run(parts, 3, { ...constant, keepState: true })
  await expect(run(parts, 2, { ...constant, resume: true })).rejects.toThrow(/number of steps/)
  const { report } = await run(parts, 5, { ...constant, resume: true })
  expect([report.steps, warnings]).toEqual([5, []])
  expect(read(parts, 'adapter_model.safetensors')).toBe(read(whole, 'adapter_model.safetensors'))
  await expect(run(parts, 8, { ...constant, resume: true })).rejects.toThrow(/finished.*keepState/s)
  const cosine = join(scratch, 'cosine')
  await run(cosine, 2, { schedule: 'cosine', keepState: true })
  await run(cosine, 3, { schedule: 'cosine', resume: true })
  expect(warnings).toEqual([expect.stringMatching(/learning rates of a run of 2 steps/)])
})
