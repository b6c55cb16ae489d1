import { existsSync, readFileSync, rmSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type Answered, compare, type Measure } from '../../../src/app/openai/compare.js'
import { planMove, type Sources } from '../../../src/app/openai/move-plan.js'
import { exportAll } from '../../../src/app/openai/node/export.js'
import { moveJobs } from '../../../src/app/openai/node/move.js'
import { recordAnswers } from '../../../src/app/openai/node/record.js'
import { openai } from '../../../src/app/openai/openai.js'
import { promptOfRow } from '../../../src/app/openai/prompts.js'
import { redactText } from '../../../src/app/openai/redact.js'
import { chat, jobOf, OLD_MODEL, ProviderServer } from './provider-server.js'

let server: ProviderServer
let dir: string

beforeEach(async () => {
  server = await ProviderServer.open()
  dir = join(await mkdtemp(join(tmpdir(), 'lowrank-openai-')), 'home')
})

afterEach(async () => {
  await server.close()
  rmSync(dir, { recursive: true, force: true })
})

const chatTemplate = readFileSync('models/data/chat.jinja', 'utf8')

describe('lowrank openai move', () => {
  it('goes the whole way from the export to a compared adapter', async () => {
    const { environment } = server
    await exportAll({ out: dir, provider: openai, environment })
    await recordAnswers({ dir, provider: openai, environment, budget: 20, maxTokens: 50 })
    const steps: number[] = []
    const move = () =>
      moveJobs({
        ...{ dir, provider: openai, bases: ['models/union-3m'], chatTemplate, maxTokens: 12 },
        on: { step: ({ step }) => steps.push(step) },
      })
    const [job] = await move()
    expect(job).toMatchObject({ job: 'ftjob-1', model: OLD_MODEL, base: 'models/union-3m' })
    expect(existsSync(join(dir, job.adapter!, 'adapter_model.safetensors'))).toBe(true)
    expect(readFileSync(join(dir, job.adapter!, 'README.md'), 'utf8')).toMatch(/your customers’ words/)
    const compared = job.comparisons['held-out prompts']
    expect(compared.rows.map(({ name }) => name).slice(0, 1)).toEqual(compared.prompts > 0 ? ['old'] : [])
    expect(compared.prompts + compared.unfinished).toBe(3)
    expect(readFileSync(join(dir, 'comparison.html'), 'utf8')).toContain('Is it as good?')
    const trained = steps.length
    await move()
    expect(steps).toHaveLength(trained)
  })
})

const rowOf = (i: number) => promptOfRow(chat(`Question ${i}`, 'yes'), 'held-out', `line ${i}`, job)!
const job = openai.jobOf(jobOf('ftjob-1'))!
const answer = (content: string, finish = 'stop') => ({ answer: { role: 'assistant', content }, finish })
const answered = (count: number, rightOfNew: (i: number) => boolean): Answered[] =>
  Array.from({ length: count }, (_, i) => ({
    prompt: rowOf(i),
    answers: {
      old: answer('yes'),
      base: answer(i % 4 === 0 ? 'yes' : 'no'),
      new: answer(rightOfNew(i) ? 'yes' : 'no'),
    },
  }))
const exact: Measure = { name: 'exact match', score: (_, message) => Number(message.content === 'yes') }

describe('the comparison', () => {
  it('says plainly when the new model is not good enough, and by how much', async () => {
    const { verdict, shareOfGain } = await compare(
      answered(400, (i) => i % 2 === 0),
      ['old', 'base', 'new'],
      exact,
    )
    expect(verdict).toMatch(/^Not good enough: worse than the old model by 50\.0 points/)
    expect(shareOfGain!.value).toBeCloseTo(1 / 3, 10)
  })

  it('gives no verdict below 200 prompts, but the number that it would need', async () => {
    const { verdict } = await compare(
      answered(40, (i) => i % 2 === 0),
      ['old', 'base', 'new'],
      exact,
    )
    expect(verdict).toMatch(/^No verdict: 40 prompts are too few\. It would need about \d{3,}\.$/)
  })

  it('counts an answer that was cut as unfinished, and never as wrong', async () => {
    const all = answered(210, () => true)
    const cut = all.map((item, i) =>
      i < 5 ? { ...item, answers: { ...item.answers, new: answer('n', 'length') } } : item,
    )
    const compared = await compare(cut, ['old', 'base', 'new'], exact)
    expect(compared).toMatchObject({ prompts: 205, unfinished: 5 })
    expect(compared.verdict).toMatch(/^As good as the old model/)
  })
})

describe('the plan of a move', () => {
  const plan = (sources: Omit<Sources, 'clause'>) => planMove({ ...sources, clause: openai.clause })
  const python = { type: 'python', name: 'mine', source: 'def grade(a, b): return 1' }
  const method = { type: 'reinforcement', reinforcement: { grader: python, hyperparameters: { n_epochs: 1 } } }
  const reinforced = openai.jobOf(jobOf('ftjob-2', { method }))!

  it('moves a job with a grader that cannot run here by its answers, or names why it does not', () => {
    const withAnswers = plan({ job: reinforced, training: [rowOf(1)] })
    expect(withAnswers).toMatchObject({ kind: 'train', task: 'causal-lm' })
    expect(withAnswers.notes[0]).toMatch(/graders that run code/)
    const asked = promptOfRow({ messages: [{ role: 'user', content: 'Hm?' }] }, 'training', 'line 1', reinforced)!
    expect(plan({ job: reinforced, training: [asked] })).toMatchObject({ kind: 'not moved' })
  })

  it('trains on no row of a provider before its terms are read, and then says so', () => {
    const row = { ...chat('Hm?', 'yes'), source: { provider: 'openai', model: OLD_MODEL } }
    const training = [rowOf(1), promptOfRow(row, 'training', 'line 2', job)!]
    const refused = plan({ job, training })
    expect(refused.kind).toBe('not moved')
    expect(refused.notes[0]).toContain(openai.clause.url)
    expect(plan({ job, training, termsRead: true }).notes[0]).toMatch(/written by a model of openai/)
  })

  it('keeps a grader that runs here', () => {
    const grader = {
      type: 'string_check',
      name: 'same',
      input: '{{sample.output_text}}',
      reference: 'yes',
      operation: 'eq',
    }
    const able = { ...reinforced, grader }
    expect(plan({ job: able, training: [rowOf(1)] })).toMatchObject({ kind: 'train', task: 'grpo' })
  })
})

it('masks e-mail addresses, phone and card numbers, and leaves dates and amounts', () => {
  const text = 'Write to ann@example.com or +49 30 123 45 67; card 4111 1111 1111 1111, on 2026-12-03 for 1200.50'
  expect(redactText(text)).toBe('Write to [e-mail] or [phone]; card [card], on 2026-12-03 for 1200.50')
})
