import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadAdapter } from 'lowrank'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type Answered, compare } from '../../../src/app/openai/compare.js'
import { type Measure, measuresOf } from '../../../src/app/openai/measures.js'
import { planMove } from '../../../src/app/openai/move-plan.js'
import { exportAll } from '../../../src/app/openai/node/export.js'
import { type MoveOptions, moveJobs } from '../../../src/app/openai/node/move.js'
import { recordAnswers } from '../../../src/app/openai/node/record.js'
import { openai } from '../../../src/app/openai/openai.js'
import { type Prompt, promptOfRow } from '../../../src/app/openai/prompts.js'
import { redactText } from '../../../src/app/openai/redact.js'
import { together } from '../../../src/app/openai/together.js'
import { CLAUSES } from '../../../src/train/rows/sources.js'
import { goldenPath } from '../../golden.js'
import { chat, jobOf, OLD_MODEL, ProviderServer } from './provider-server.js'
import {
  adapterFile,
  answerOfTogether,
  archive,
  environmentOfTogether,
  TOGETHER_MODEL,
  tarOf,
} from './together-answers.js'

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
  const take = (jobs: object[], files: Record<string, object[]>) => {
    server.jobs = jobs
    for (const [id, rows] of Object.entries(files)) {
      const content = rows.map((row) => `${JSON.stringify(row)}\n`).join('')
      const { bytes: _, ...file } = server.files.get('file-train')!
      server.files.set(id, { ...file, id, filename: `${id}.jsonl`, content, bytes: Buffer.byteLength(content) })
    }
    return exportAll({ out: dir, provider: openai, environment: server.environment })
  }
  const move = async (jobs: object[], files: Record<string, object[]>, options: Partial<MoveOptions> = {}) => {
    await take(jobs, files)
    return moveJobs({ dir, bases: ['models/union-3m'], chatTemplate, maxTokens: 4, ...options })
  }
  const few = { hyperparameters: { n_epochs: 1 } }
  const card = (place: string) => readFileSync(join(dir, place, 'README.md'), 'utf8')

  it('moves each job by its own method, and one whose grader cannot run here by the answers in its file', async () => {
    const message = (role: string, content: string) => ({ role, content })
    const pair = (i: number) => ({
      input: { messages: [message('user', `Boat ${i}?`)] },
      preferred_output: [message('assistant', 'red')],
      non_preferred_output: [message('assistant', 'blue')],
    })
    const asked = (i: number) => ({ messages: [message('user', `Boat ${i}?`)], word: 'a' })
    const grader = {
      ...{ type: 'string_check', name: 'is', operation: 'ilike' },
      ...{ input: '{{sample.output_text}}', reference: '{{item.word}}' },
    }
    const python = { type: 'python', name: 'mine', source: 'def grade(sample, item): return 1' }
    const by = (type: string, id: string, changes: object) => {
      const about = { training_file: id, validation_file: null, fine_tuned_model: `ft:gpt-4.1:acme::${id}` }
      return jobOf(id, { ...about, method: { type, [type]: { ...few, ...changes } } })
    }
    const rows = (make: (i: number) => object) => Array.from({ length: 2 }, (_, i) => make(i))
    const jobs = await move(
      [
        by('dpo', 'pairs', {}),
        { ...by('reinforcement', 'rewards', { grader }), validation_file: 'asked' },
        by('reinforcement', 'answers', { grader: python }),
        by('reinforcement', 'neither', { grader: python }),
      ],
      {
        pairs: rows(pair),
        rewards: rows(asked),
        asked: rows(asked),
        answers: rows((i) => chat(`Boat ${i}?`, 'red')),
        neither: rows(asked),
      },
    )
    const notes = Object.fromEntries(jobs.map(({ job, notes }) => [job, notes.join('; ')]))
    expect(notes.pairs).toMatch(/ steps of dpo on 2 rows/)
    expect(notes.rewards).toMatch(/ steps of grpo on 2 rows.*measured on 2 of 2 held-out rows/)
    expect(card(jobs[1].adapter!)).toMatch(/reward/i)
    expect(notes.answers).toMatch(/grader cannot run here \(.*mine.*code.*answers in its file.* steps of causal-lm/)
    expect(notes.neither).toMatch(/^not moved: its grader cannot run here \(.*mine.*no answers to learn from/)
    expect(jobs.map(({ adapter }) => adapter !== undefined)).toEqual([true, true, true, false])
    expect(card(jobs[0].adapter!)).toContain('your customers’ words')
  }, 120_000)

  it('trains on no row of a provider before its terms are read, and the card then names it', async () => {
    const row = { ...chat('Hm?', 'yes'), source: { provider: 'openai', model: OLD_MODEL } }
    const one = [jobOf('ftjob-1', { training_file: 'mixed', validation_file: null, ...few })]
    const [refused] = await move(one, { mixed: [chat('Ah?', 'no'), row] })
    expect(refused.adapter).toBeUndefined()
    expect(refused.notes).toEqual([expect.stringContaining(CLAUSES.openai.url)])
    const [moved] = await move(one, { mixed: [chat('Ah?', 'no'), row] }, { termsRead: true })
    expect(card(moved.adapter!)).toContain(`openai, ${OLD_MODEL} wrote: 1`)
  }, 60_000)

  it.each([
    ['takes recorded answers as soft targets, if validation is better with them', 'red', /that has learned them/],
    ['leaves recorded answers out, if validation is worse with them', 'zq zq zq', /that has not learned them/],
  ])(
    '%s',
    async (_, text, end) => {
      const share = (token: string, part: number) => ({
        token,
        bytes: [...Buffer.from(token)],
        logprob: Math.log(part),
      })
      const [first, ...others] = text.split(/(?= )/)
      server.answer = () => ({
        message: { role: 'assistant', content: text, refusal: null },
        logprobs: {
          content: [first, ...others].map((token) => {
            return { ...share(token, 0.95), top_logprobs: [share(token, 0.95), share('b', 0.05)] }
          }),
        },
        finish_reason: 'stop',
      })
      const rows = (word: string) => Array.from({ length: 4 }, (_, i) => chat(`${word} ${i}?`, 'red'))
      const files = { boats: rows('Boat'), ships: rows('Ship') }
      const one = [
        jobOf('ftjob-1', {
          training_file: 'boats',
          validation_file: 'ships',
          hyperparameters: { n_epochs: 4 },
          method: undefined,
        }),
      ]
      await take(one, files)
      const manifest = readFileSync(join(dir, 'manifest.json'))
      await recordAnswers({ dir, budget: 20, environment: server.environment })
      const [untold] = await move(one, files)
      expect(untold.notes.join()).not.toMatch(/soft targets/)
      writeFileSync(join(dir, 'manifest.json'), manifest)
      const [moved] = await move(one, files, { termsRead: true })
      const note = moved.notes.find((line) => line.includes('soft targets'))!
      const [, after, before] = /is ([\d.]+) with them and ([\d.]+) without/.exec(note)!
      expect(note).toMatch(/^\d+ recorded answers/)
      expect(note).toMatch(end)
      expect(Number(after) < Number(before)).toBe(text === 'red')
      const wrote = `openai, ${OLD_MODEL} wrote:`
      expect(card(moved.adapter!).includes(wrote)).toBe(text === 'red')
      expect(moved.adapter!.endsWith('.soft')).toBe(text === 'red')
      expect((await loadAdapter(join(dir, moved.adapter!))).config.rank).toBeGreaterThan(0)
      // A held-out question is not among what was learned.
      expect(readFileSync(join(dir, 'moved/data/ftjob-1.recorded.jsonl'), 'utf8')).not.toContain('Ship')
    },
    120_000,
  )

  it('trains no job twice', async () => {
    const one = [jobOf('ftjob-1', { training_file: 'few', validation_file: null, ...few })]
    const steps: number[] = []
    const on = { step: ({ step }: { step: number }) => steps.push(step) }
    await move(one, { few: [chat('Ah?', 'no')] }, { on })
    const trained = steps.length
    expect(trained).toBeGreaterThan(0)
    const [again] = await move(one, {}, { on })
    expect([steps.length, again.adapter !== undefined]).toEqual([trained, true])
  }, 60_000)

  it('masks what is trained on', async () => {
    const rows = [chat('I am ann@example.com', 'Hello')]
    const one = [jobOf('ftjob-1', { training_file: 'mails', validation_file: null, ...few })]
    await move(one, { mails: rows }, { redact: true })
    expect(readFileSync(join(dir, 'moved/data/ftjob-1.training.jsonl'), 'utf8')).toContain('I am [e-mail]')
  }, 60_000)

  it('takes weights home that the provider gives, and trains nothing then', async () => {
    server.own = answerOfTogether
    const manifest = await exportAll({ out: dir, provider: together, environment: environmentOfTogether(server) })
    expect(manifest.missing).toEqual([])
    const [job] = await moveJobs({ dir, bases: ['models/union-3m'] })
    expect(job).toMatchObject({ model: TOGETHER_MODEL, isTaken: true, adapter: 'weights/ft-0a1b2c3d-aaaa-bbbb' })
    const home = join(dir, job.adapter!)
    expect(readdirSync(home).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors'])
    expect(readFileSync(join(home, 'adapter_model.safetensors'))).toEqual(adapterFile('adapter_model.safetensors'))
    expect((await loadAdapter(home)).config.rank).toBeGreaterThan(0)
  })

  it('names an archive that is cut, and keeps nothing of it', async () => {
    const tar = tarOf({ 'adapter_model.safetensors': adapterFile('adapter_model.safetensors') })
    server.own = (method, path, query) =>
      path === '/finetune/download' ? { body: tar.subarray(0, 5000) } : answerOfTogether(method, path, query)
    const { missing } = await exportAll({ out: dir, provider: together, environment: environmentOfTogether(server) })
    expect(missing).toMatchObject([{ what: expect.stringContaining('the archive is cut') }])
    expect(existsSync(join(dir, 'weights/ft-0a1b2c3d-aaaa-bbbb/adapter_model.safetensors'))).toBe(false)
  })

  const sending = (body: Uint8Array) => {
    server.own = (method, path, query) =>
      path === '/finetune/download' ? { body } : answerOfTogether(method, path, query)
    return exportAll({ out: dir, provider: together, environment: environmentOfTogether(server) })
  }

  it('unpacks an archive that zstd has packed', async () => {
    expect((await sending(readFileSync(goldenPath('providers', 'adapter.tar.zst')))).missing).toEqual([])
    for (const name of ['adapter_config.json', 'adapter_model.safetensors']) {
      const file = readFileSync(join(dir, 'weights/ft-0a1b2c3d-aaaa-bbbb', name))
      expect(file).toEqual(readFileSync(goldenPath('kinds', 'linear', name)))
    }
  })

  it.each(['gzip', 'zstd'])('names an archive that is damaged: %s', async (kind) => {
    const whole = kind === 'gzip' ? archive() : readFileSync(goldenPath('providers', 'adapter.tar.zst'))
    const { missing } = await sending(
      Buffer.concat([whole.subarray(0, 300), Buffer.alloc(300, 7), whole.subarray(600)]),
    )
    expect(missing).toMatchObject([{ what: expect.stringMatching(/archive is (damaged|cut)|not a tar archive/) }])
    expect(existsSync(join(dir, 'weights/ft-0a1b2c3d-aaaa-bbbb/adapter_model.safetensors'))).toBe(false)
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
    const ofBase = all.map((item) => ({ ...item, answers: { ...item.answers, base: answer('no and no', 'length') } }))
    expect(await compare(ofBase, ['old', 'base', 'new'], exact)).toMatchObject({ prompts: 210, unfinished: 0 })
    expect(compared).toMatchObject({ prompts: 205, unfinished: 5 })
    expect(compared.verdict).toMatch(/^As good as the old model/)
  })
})

describe('measures', () => {
  const names = (prompts: Prompt[], options = {}) =>
    measuresOf({ ...job, grader: undefined }, prompts, { isTraffic: false, ...options }).map(({ name }) => name)
  const call = (args: string, name = 'find') => ({
    ...{ role: 'assistant', content: null },
    tool_calls: [{ id: `call_${args.length}`, type: 'function', function: { name, arguments: args } }],
  })
  const promptWith = (wanted: object, fields = {}) =>
    promptOfRow({ messages: [{ role: 'user', content: 'Hm?' }, wanted], ...fields }, 'held-out', 'line 1', job)!
  const scores = async (prompt: Prompt, answer: object) => {
    const measures = measuresOf(job, [prompt], { isTraffic: false })
    return Object.fromEntries(
      await Promise.all(
        measures.map(async ({ name, score }) => [name, await score(prompt, answer as never, answer as never)]),
      ),
    )
  }

  it('fit the prompts', () => {
    const plain = rowOf(1)
    const calling = promptWith(call('{}'))
    const format = { type: 'json_schema', json_schema: { name: 'a', schema: { type: 'object' } } }
    const formed = { ...plain, request: { ...plain.request, response_format: format } }
    expect(names([plain])).toEqual(['exact match'])
    expect(names([plain, calling])).toEqual(['exact match', 'right calls'])
    expect(names([formed])).toEqual(['exact match', 'fits the schema'])
    const judge = { url: 'http://localhost/v1', model: 'large' }
    expect(names([plain], { isTraffic: true, judge })).toEqual([
      'agreement with the old answer',
      'judged by large against the first',
    ])
  })

  it('counts calls with equal names and equal arguments as right, however they are written', async () => {
    const prompt = promptWith(call('{"a":1,"b":[2,3]}'))
    expect(await scores(prompt, call('{ "b": [2, 3], "a": 1 }'))).toEqual({ 'right calls': 1 })
    for (const wrong of [
      call('{"a":1,"b":[3,2]}'),
      call('{"a":1,"b":[2,3]}', 'look'),
      { role: 'assistant', content: '' },
    ])
      expect(await scores(prompt, wrong)).toEqual({ 'right calls': 0 })
    expect(await scores(promptWith({ role: 'assistant', content: '{}' }), call('{}'))).toEqual({ 'exact match': 0 })
  })

  it('measures whether an answer fits the schema of the request', async () => {
    const schema = {
      type: 'object',
      properties: { n: { $ref: '#/$defs/n' }, kind: { enum: ['a', 'b'] }, more: { type: ['string', 'null'] } },
      ...{ required: ['n', 'kind'], additionalProperties: false, $defs: { n: { type: 'integer' } } },
    }
    const format = { type: 'json_schema', json_schema: { name: 'x', schema } }
    const prompt = { ...rowOf(1), request: { ...rowOf(1).request, response_format: format } }
    const fits = async (content: string) => (await scores(prompt, { role: 'assistant', content }))['fits the schema']
    expect(await fits('{"n": 1, "kind": "a", "more": null}')).toBe(1)
    for (const wrong of [
      '{"n": 1.5, "kind": "a"}',
      '{"n": 1}',
      '{"n": 1, "kind": "c"}',
      '{"n": 1, "kind": "a", "z": 1}',
      'n',
    ])
      expect(await fits(wrong)).toBe(0)
  })

  it('asks a judge in both orders, and gives costs and times of each', async () => {
    const seen: string[] = []
    server.answer = ({ messages }) => {
      const { content } = messages[0]
      seen.push(content)
      const better = content.indexOf('[A]\nlong answer') >= 0 ? 'A' : 'B'
      return { message: { role: 'assistant', content: better }, finish_reason: 'stop' }
    }
    const [, judged] = measuresOf(job, [rowOf(1)], { isTraffic: false, judge: { url: server.url, model: 'large' } })
    const one = (content: string, ms: number, cost?: number) => ({ ...answer(content), ms, cost })
    const all = [1, 2, 3].map((i) => ({
      prompt: rowOf(i),
      answers: { old: one('short', 100 * i, 0.002), new: one(i === 3 ? 'short' : 'long answer', 10 * i) },
    }))
    const { rows, verdict } = await compare(all, ['old', 'new'], judged)
    expect(seen).toHaveLength(4)
    expect(rows[1]).toMatchObject({ name: 'new', score: { value: 5 / 6 }, costPerThousand: null, medianMs: 20 })
    expect(rows[0]).toMatchObject({ score: { value: 0.5 }, costPerThousand: 2, medianMs: 200, slowMs: 300 })
    expect(rows[1].difference!.value).toBeCloseTo(1 / 3, 10)
    expect(verdict).toMatch(/^No verdict: 3 prompts/)
  })

  it('pairs differences by prompt', async () => {
    // The new model is wrong on five prompts that the old one knows, out of 400 of which both miss a half.
    const all = Array.from({ length: 400 }, (_, i) => ({
      prompt: rowOf(i),
      answers: { old: answer(i < 200 ? 'yes' : 'no'), new: answer(i >= 5 && i < 200 ? 'yes' : 'no') },
    }))
    const { rows } = await compare(all, ['old', 'new'], exact)
    const { low, high } = rows[1].difference!
    expect(high! - low!).toBeLessThan((rows[1].score.high! - rows[1].score.low!) / 3)
  })
})

describe('the plan of a move', () => {
  const python = { type: 'python', name: 'mine', source: 'def grade(a, b): return 1' }
  const method = { type: 'reinforcement', reinforcement: { grader: python, hyperparameters: { n_epochs: 1 } } }
  const reinforced = openai.jobOf(jobOf('ftjob-2', { method }))!

  it('moves a job with a grader that cannot run here by its answers, or names why it does not', () => {
    const withAnswers = planMove(reinforced, [rowOf(1)])
    expect(withAnswers).toMatchObject({ task: 'causal-lm' })
    expect(withAnswers.notes[0]).toMatch(/graders that run code/)
    const asked = promptOfRow({ messages: [{ role: 'user', content: 'Hm?' }] }, 'training', 'line 1', reinforced)!
    const { task, notes } = planMove(reinforced, [asked])
    expect({ task, notes }).toEqual({
      task: undefined,
      notes: [expect.stringMatching(/^not moved: its grader.*no answers/)],
    })
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
    expect(planMove(able, [rowOf(1)])).toMatchObject({ task: 'grpo' })
  })
})

it('masks e-mail addresses, phone and card numbers, and leaves dates and amounts', () => {
  const text = 'Write to ann@example.com or +49 30 123 45 67; card 4111 1111 1111 1111, on 2026-12-03 for 1200.50'
  expect(redactText(text)).toBe('Write to [e-mail] or [phone]; card [card], on 2026-12-03 for 1200.50')
})
