// Ownership: files, jobs and models belong to the name of a key. The jobs are written as files by hand, so
// that no process starts.

import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler, listen, storedRows, trainingIn } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ROUTES } from '../../../src/serve/routes.js'
import { lowrankHere } from '../../app/cli/in-process.js'
import { enginesHere } from '../../engines-here.js'
import { goldenPath } from '../../golden.js'

const KEYS = { root: 'root-secret', alice: 'alice-secret', bob: 'bob-secret', carol: 'carol-secret' }
type Name = keyof typeof KEYS
const folder = mkdtempSync(join(tmpdir(), 'lowrank-owners-'))
let model: Model
let handler: Handler

/** What each of two owners has, and what nobody has. */
const thingsOf = (digit: string) => ({
  file: `file-${digit.repeat(24)}`,
  job: `ftjob-${digit.repeat(24)}`,
  model: `ft:union-3m:lowrank:boat:${digit.repeat(10)}`,
  completion: `chatcmpl-${digit.repeat(8)}`,
  checkpoint: `ft:union-3m:lowrank:boat:${digit.repeat(10)}:ckpt-step-3`,
})
const THINGS = { alice: thingsOf('a'), bob: thingsOf('b') }
const NOTHING = thingsOf('0')

const answerOf = (id: string) => ({
  ...{ id, object: 'chat.completion', created: 1, model: 'union-3m' },
  choices: [{ index: 0, message: { role: 'assistant', content: 'Hi', refusal: null }, finish_reason: 'stop' }],
})

function put(kind: string, record: { id: string }, where = folder): string {
  const place = join(where, kind, record.id)
  mkdirSync(place, { recursive: true })
  writeFileSync(join(place, 'record.json'), JSON.stringify({ created_at: 1_700_000_000, ...record }))
  return place
}

function jobOf({ base, ...about }: { id: string; owner: string; base: string; status: string }) {
  const created_at = 1_700_000_001
  return {
    ...{ ...about, model: base, base, training_file: NOTHING.file, validation_file: null, method: 'supervised' },
    ...{ suffix: 'boat', seed: 1, metadata: null, lowrank: {}, hyperparameters: {}, isPaused: false },
    ...{ checkpointEvery: 3, turns: 0, error: null, finished_at: about.status === 'queued' ? null : created_at },
    ...{ estimated_finish: null, trained_tokens: 1, result_files: [], deleted: [] },
    checkpoints: [
      { step: 3, created_at, metrics: {} },
      { step: 6, created_at, metrics: {}, isResult: true },
    ],
  }
}

beforeAll(enginesHere)
beforeAll(async () => {
  for (const owner of ['alice', 'bob'] as const) {
    const { file, job } = THINGS[owner]
    const content = put('files', { id: file, owner, bytes: 3, filename: 'x.jsonl', purpose: 'fine-tune' } as never)
    writeFileSync(join(content, 'content.jsonl'), '{}\n')
    const about = { id: job, owner, base: 'union-3m', status: 'succeeded' }
    const place = put('jobs', { ...jobOf(about), training_file: file, metadata: { of: owner } } as never)
    put('completions', {
      ...{ id: THINGS[owner].completion, owner, metadata: { rating: owner === 'alice' ? 'good' : 'bad' } },
      ...{ messages: [{ role: 'user', content: 'Hello' }], answer: answerOf(THINGS[owner].completion) },
    } as never)
    for (const part of ['run', 'checkpoints/step-3']) {
      cpSync(goldenPath('peft', 'f32'), join(place, part), { recursive: true })
    }
  }
  model = await loadModel('models/union-3m')
  handler = await createHandler({
    ...{ model, training: trainingIn(folder), hosts: ['localhost'], maxAdapters: 2 },
    apiKeys: Object.entries(KEYS).map(([name, key]) => ({ key, name, isAdmin: name === 'root' })),
  })
})
afterAll(async () => {
  await handler.close()
  await model.close()
  rmSync(folder, { recursive: true, force: true })
})

function call(name: Name, method: string, path: string, body?: object): Promise<Response> {
  const isForm = body instanceof FormData
  return handler(
    new Request(`http://localhost${path}`, {
      method,
      headers: { authorization: `Bearer ${KEYS[name]}`, ...(!isForm && { 'content-type': 'application/json' }) },
      ...(body !== undefined && { body: isForm ? body : JSON.stringify(body) }),
    }),
  )
}

/** Requests that name a thing in every place where a route takes a name. */
function requestsAbout(things: typeof NOTHING): [method: string, path: string, body?: object][] {
  const all = Object.values(things)
  const kinds = { files: things.file, jobs: things.job, completions: things.completion }
  return Object.entries(ROUTES).flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, { fields = {} }]): [string, string, object?][] => {
      const [kind] = Object.keys(kinds).filter((name) => path.includes(`/${name}/*`)) as (keyof typeof kinds)[]
      const ids = kind === undefined ? all : [kinds[kind]]
      const paths = path.includes('*') ? ids.map((id) => path.replace('*', encodeURIComponent(id))) : [path]
      const bodies = bodiesAbout(things, Object.keys(fields))
      return paths.flatMap((target): [string, string, object?][] =>
        method === 'GET'
          ? [
              [method, target],
              [method, `${target}?after=${all[2]}`],
            ]
          : bodies.map((body) => [method, target, body]),
      )
    }),
  )
}

function bodiesAbout(things: typeof NOTHING, fields: readonly string[]): object[] {
  const has = (name: string) => fields.includes(name)
  if (has('training_file')) {
    return [
      { model: 'union-3m', training_file: things.file },
      { model: things.model, training_file: things.file },
      { model: things.checkpoint, training_file: things.file },
    ]
  }
  const texts = {
    ...(has('prompt') && { prompt: 'And', max_tokens: 1 }),
    ...(has('messages') && { messages: [{ role: 'user', content: 'x' }], max_tokens: 1 }),
    ...(has('input') && { input: 'x' }),
    ...(has('query') && { query: 'x', documents: ['x'] }),
    ...(has('text_1') && { text_1: 'x', text_2: 'x' }),
    ...(has('tokens') && { tokens: [1] }),
    ...(has('part_ids') && { part_ids: ['part_1'] }),
  }
  const named = [things.model, things.checkpoint]
  return [
    ...(has('model') && !has('name') ? named.map((name) => ({ ...texts, model: name })) : []),
    ...(has('adapter') ? named.map((name) => ({ ...texts, adapter: { [name]: 1 } })) : []),
    ...(has('part_ids') || fields.length === 0 ? [texts] : []),
    ...(fields.join() === 'metadata' ? [{ metadata: { rating: 'bad' } }] : []),
  ]
}

const ofServer = ({ headers }: Request) => ({ ...Object.fromEntries(headers), host: 'localhost' })

const ASKED = Object.keys(ROUTES).length

describe('an owner', () => {
  it('learns of a thing of another key exactly what there is to learn of a thing that is not there', async () => {
    const name = (text: string, things: typeof NOTHING) =>
      Object.entries(things).reduceRight((told, [kind, id]) => told.replaceAll(id, kind), text)
    const told = async (who: Name, [method, path, body]: [string, string, object?], things: typeof NOTHING) => {
      const answer = await call(who, method, path, body)
      return `${answer.status} ${name(await answer.text(), things)}`
    }
    const [absent, others] = [requestsAbout(NOTHING), requestsAbout(THINGS.alice)]
    expect(others.length).toBeGreaterThan(ASKED)
    for (const who of ['bob', 'carol'] as const) {
      for (const [i, request] of others.entries()) {
        // Times and counts differ between any two requests.
        if (/^\/(metrics|ready|health)/.test(request[1])) continue
        const shown = (text: string) => text.replaceAll(/"(id|created)":("[^"]*-[^"]*"|\d+)/g, '')
        const about = `${who}: ${request.slice(0, 2).join(' ')} ${JSON.stringify(request[2] ?? '')}`
        expect(shown(await told(who, request, THINGS.alice)), about).toBe(shown(await told(who, absent[i], NOTHING)))
      }
    }
  })

  it('finds its own things, and an admin those of all, in lists and by name', async () => {
    const idsIn = async (who: Name, path: string) =>
      ((await (await call(who, 'GET', path)).json()) as { data: { id: string }[] }).data.map(({ id }) => id)
    const { alice, bob } = THINGS
    expect(await idsIn('alice', '/v1/files')).toEqual([alice.file])
    expect(await idsIn('carol', '/v1/files')).toEqual([])
    expect((await idsIn('root', '/v1/files')).sort()).toEqual([alice.file, bob.file])
    expect(await idsIn('bob', '/v1/fine_tuning/jobs')).toEqual([bob.job])
    expect((await idsIn('root', '/v1/fine_tuning/jobs?metadata[of]=alice')).sort()).toEqual([alice.job])
    expect(await idsIn('bob', '/v1/models')).toEqual(['union-3m', bob.checkpoint, bob.model])
    const ask = { model: alice.model, prompt: 'And', max_tokens: 1 }
    expect((await call('alice', 'POST', '/v1/completions', ask)).status).toBe(200)
    // Alice's request has loaded her model. For Bob it still does not exist.
    expect((await call('bob', 'POST', '/v1/completions', ask)).status).toBe(404)
    expect(await (await call('bob', 'GET', '/metrics')).text()).not.toContain(alice.model)
    expect(await (await call('alice', 'GET', '/metrics')).text()).toContain(alice.model)
    for (const more of [alice.checkpoint, bob.model, bob.checkpoint, alice.model]) {
      expect((await call('root', 'POST', '/v1/completions', { ...ask, model: more })).status, more).toBe(200)
    }
    const job = (who: Name) => call(who, 'GET', `/v1/fine_tuning/jobs/${alice.job}`).then((answer) => answer.text())
    expect(await job('alice')).not.toContain(folder)
    expect(await job('root')).toContain(join(folder, 'jobs', alice.job))
  })

  it('gives a model a further name only as an admin, which all may use until it is removed', async () => {
    const alias = { name: 'best', model: THINGS.alice.model }
    expect((await call('alice', 'POST', '/v1/aliases', alias)).status).toBe(403)
    expect((await call('root', 'POST', '/v1/aliases', { ...alias, name: 'union-3m' })).status).toBe(409)
    expect((await call('root', 'POST', '/v1/aliases', { ...alias, name: THINGS.bob.model })).status).toBe(409)
    expect((await call('root', 'POST', '/v1/aliases', { ...alias, model: 'none' })).status).toBe(404)
    expect((await call('root', 'POST', '/v1/aliases', alias)).status).toBe(200)
    const ask = { model: 'best', prompt: 'And', max_tokens: 1 }
    expect((await call('carol', 'POST', '/v1/completions', ask)).status).toBe(200)
    expect(await (await call('carol', 'GET', '/v1/models')).text()).not.toContain(THINGS.alice.model)
    const remove = (who: Name) => call(who, 'DELETE', `/v1/models/${encodeURIComponent(THINGS.alice.model)}`)
    expect((await remove('alice')).status).toBe(409)
    // While callers ask, the name goes to another model and back.
    const asked = Array.from({ length: 6 }, () => call('carol', 'POST', '/v1/completions', ask))
    for (const target of ['union-3m', THINGS.bob.model]) {
      expect((await call('root', 'POST', '/v1/aliases', { name: 'best', model: target })).status).toBe(200)
      asked.push(call('carol', 'POST', '/v1/completions', ask))
    }
    expect((await Promise.all(asked)).map(({ status }) => status)).toEqual(asked.map(() => 200))
    expect((await remove('bob')).status).toBe(404)
    expect(await (await remove('alice')).json()).toMatchObject({ deleted: true })
    expect((await remove('alice')).status).toBe(404)
    expect((await call('root', 'POST', '/v1/completions', { ...ask, model: THINGS.alice.model })).status).toBe(404)
    expect((await call('root', 'DELETE', '/v1/aliases/best')).status).toBe(200)
    expect((await call('carol', 'POST', '/v1/completions', ask)).status).toBe(404)
  })
})

describe('stored chats', () => {
  const json = async (who: Name, method: string, path: string, body?: object) => {
    return (await call(who, method, path, body)).json()
  }

  it('are found by metadata, rated, read and deleted', async () => {
    const { completion } = THINGS.bob
    const path = `/v1/chat/completions/${completion}`
    expect((await json('bob', 'GET', '/v1/chat/completions?metadata[rating]=good')).data).toEqual([])
    expect(await json('bob', 'POST', path, { metadata: { rating: 'good' } })).toMatchObject({
      metadata: { rating: 'good' },
    })
    const { data } = await json('bob', 'GET', '/v1/chat/completions?metadata[rating]=good&model=union-3m')
    expect(data).toEqual([{ ...answerOf(completion), metadata: { rating: 'good' } }])
    expect((await json('bob', 'GET', `${path}/messages`)).data).toMatchObject([
      { id: `${completion}-0`, content: 'Hello' },
    ])
  })

  it('become files of records, of the caller alone, and of all for whoever has the folder', async () => {
    const make = (who: Name, lowrank: object) => json(who, 'POST', '/v1/files', { purpose: 'fine-tune', lowrank })
    const { id } = await make('alice', { from: 'stored', metadata: { rating: 'good' } })
    const chat = {
      messages: [
        { role: 'user', content: 'Hello' },
        { role: 'assistant', content: 'Hi' },
      ],
    }
    expect(await json('alice', 'GET', `/v1/files/${id}/content`)).toEqual(chat)
    const judged = await make('alice', { from: 'stored', method: 'kto' })
    expect(await json('alice', 'GET', `/v1/files/${judged.id}/content`)).toMatchObject({ label: true })
    expect((await make('carol', { from: 'stored' })).error.param).toBe('lowrank')
    expect((await make('carol', { from: 'store' })).error.param).toBe('lowrank')
    const rows = await storedRows(folder, { metadata: { rating: 'good' } })
    expect(rows.split('\n')).toHaveLength(3)
    const print = (...flags: string[]) => lowrankHere('data', folder, '--from-store', ...flags)
    expect(await print('--where', 'rating=good')).toMatchObject({ code: 0, stdout: rows })
    expect((await print('--where', 'rating=bad', '--where', 'topic=x')).stdout).toBe('')
    const labels = (await print('--method', 'kto')).stdout.trim().split('\n')
    expect(labels.map((line) => JSON.parse(line).label)).toEqual([true, true])
    for (const file of [id, judged.id]) await call('alice', 'DELETE', `/v1/files/${file}`)
    const path = `/v1/chat/completions/${THINGS.bob.completion}`
    expect(await json('bob', 'DELETE', path)).toMatchObject({ deleted: true })
    expect((await call('bob', 'GET', path)).status).toBe(404)
  })

  it('are kept with `store`, whole and streamed, and the oldest goes if there are too many', async () => {
    const place = `${folder}-chats`
    const template = '{% for m in messages %}{{ m.content }}{% endfor %}'
    const chats = await createHandler({
      ...{
        model,
        training: trainingIn(place, { maxStored: 2, maxStoredBytes: 10_000 }),
        hosts: ['localhost'],
        chatTemplate: template,
      },
      apiKeys: [{ key: 'x', isAdmin: true }],
    })
    const ask = async (body?: object) => {
      const headers = { authorization: 'Bearer x', 'content-type': 'application/json' }
      const sent = body && { method: 'POST', body: JSON.stringify(body) }
      return (await chats(new Request('http://localhost/v1/chat/completions', { headers, ...sent }))).text()
    }
    const asked = { messages: [{ role: 'user', content: 'And the' }], max_tokens: 4, store: true }
    await ask({ ...asked, metadata: { n: '1' } })
    const { id, choices } = JSON.parse(await ask({ ...asked, metadata: { n: '2' } }))
    await ask({ ...asked, stream: true, metadata: { n: '3' } })
    await ask({ ...asked, store: false })
    const { data } = JSON.parse(await ask())
    expect(data.map(({ metadata }: { metadata: object }) => metadata)).toEqual([{ n: '2' }, { n: '3' }])
    expect(data[0]).toMatchObject({ id, choices })
    for (const metadata of [
      { n: 'x'.repeat(513) },
      { ['x'.repeat(65)]: '' },
      Object.fromEntries(Array.from({ length: 17 }, (_, i) => [`${i}`, ''])),
    ]) {
      expect(JSON.parse(await ask({ ...asked, metadata })).error.param).toBe('metadata')
    }
    // Two long chats do not fit together, so all older ones go.
    const long = [{ role: 'user', content: 'And the', name: 'x'.repeat(6000) }]
    await ask({ ...asked, messages: long, metadata: { n: '4' } })
    await ask({ ...asked, messages: long, metadata: { n: '5' } })
    const left = JSON.parse(await ask()).data.map(({ metadata }: { metadata: object }) => metadata)
    expect(left).toEqual([{ n: '5' }])
    await chats.close()
    rmSync(place, { recursive: true, force: true })
  })
})

it('keeps files and stored chats for `retentionDays`', async () => {
  const place = `${folder}-old`
  const now = Math.floor(Date.now() / 1000)
  const days = (count: number) => now - count * 86_400
  const entries = {
    files: { bytes: 3, filename: 'x.jsonl', purpose: 'fine-tune' },
    completions: { metadata: {}, messages: [], answer: answerOf('chat') },
  }
  const [old, recent, short] = ['a', 'b', 'c'].map((digit) => digit.repeat(24))
  const prefixes = { files: 'file-', completions: 'chatcmpl-' }
  for (const [kind, about] of Object.entries(entries)) {
    const prefix = prefixes[kind as keyof typeof prefixes]
    put(kind, { ...about, id: prefix + old, owner: 'root', created_at: days(8) } as never, place)
    put(kind, { ...about, id: prefix + recent, owner: 'root', created_at: days(6) } as never, place)
  }
  put(
    'files',
    { ...entries.files, id: `file-${short}`, owner: 'root', created_at: days(1), expires_at: now - 1 } as never,
    place,
  )
  const opened = await createHandler({
    ...{ model, training: trainingIn(place, { retentionDays: 7 }), hosts: ['localhost'] },
    apiKeys: [{ key: 'x', name: 'root', isAdmin: true }],
  })
  const idsIn = async (path: string) => {
    const asked = new Request(`http://localhost/v1${path}`, { headers: { authorization: 'Bearer x' } })
    return (await (await opened(asked)).json()).data.map(({ id }: { id: string }) => id)
  }
  expect(await idsIn('/files')).toEqual([`file-${recent}`])
  expect(await idsIn('/chat/completions')).toEqual(['chat'])
  await opened.close()
  expect(readdirSync(join(place, 'files'))).toEqual([`file-${recent}`])
  expect(await storedRows(place, {})).toBe(`${JSON.stringify({ messages: [{ role: 'assistant', content: 'Hi' }] })}\n`)
  rmSync(place, { recursive: true })
})

it('bounds bytes and jobs of an owner, and finds models whose base has a slash in its name', async () => {
  const place = `${folder}-bounds`
  const base = 'org/union'
  const id = 'ftjob-1234567890abcdef12345678'
  const made = put('jobs', { ...jobOf({ id, base, owner: 'root', status: 'succeeded' }) } as never, place)
  cpSync(goldenPath('peft', 'f32'), join(made, 'run'), { recursive: true })
  put(
    'jobs',
    { ...jobOf({ id: `ftjob-${'a'.repeat(24)}`, base, owner: 'root', status: 'queued' }), isPaused: true } as never,
    place,
  )
  const limits = { maxFileBytes: 20, maxOwnerBytes: 30, maxJobs: 1 }
  const opened = await createHandler({
    ...{ model, training: trainingIn(place, limits), hosts: ['localhost'], servedModelName: base },
    apiKeys: [{ key: 'x', name: 'root', isAdmin: true }],
  })
  const ask = async (method: string, path: string, body?: object) => {
    const isForm = body instanceof FormData
    const headers = { authorization: 'Bearer x', ...(!isForm && { 'content-type': 'application/json' }) }
    const sent = body && { body: isForm ? body : JSON.stringify(body) }
    const answer = await opened(new Request(`http://localhost/v1${path}`, { method, headers, ...sent }))
    return { status: answer.status, ...(await answer.json()) }
  }
  const upload = (content: string) => {
    const form = new FormData()
    form.set('purpose', 'fine-tune')
    form.set('file', new File([content], 'x.jsonl'))
    return ask('POST', '/files', form)
  }
  expect((await upload('{"text":"too many bytes"}')).status).toBe(413)
  const { id: file } = await upload('{"text":"a few"}')
  const full = { status: 429, error: { code: 'storage_full' } }
  expect(await upload('{"text":"others"}')).toMatchObject(full)
  const gone = { status: 404, error: { message: expect.stringMatching(/send the whole file to \/v1\/files/) } }
  expect(await ask('POST', '/uploads', { filename: 'x', bytes: 15 })).toMatchObject(gone)
  const asked = { model: base, training_file: file }
  const another = await ask('POST', '/fine_tuning/jobs', asked)
  expect(another).toMatchObject({ status: 429, error: { code: 'too_many_jobs' } })
  const integrations = [{ type: 'wandb', wandb: { project: 'x' } }]
  const integrated = await ask('POST', '/fine_tuning/jobs', { ...asked, integrations })
  expect(integrated).toMatchObject({ status: 400, error: { param: 'integrations' } })
  const name = 'ft:org/union:lowrank:boat:1234567890'
  expect((await ask('GET', '/models')).data.map((card: { id: string }) => card.id)).toContain(name)
  expect((await ask('POST', '/completions', { model: name, prompt: 'A', max_tokens: 1 })).status).toBe(200)
  expect(await ask('DELETE', `/models/${encodeURIComponent(name)}`)).toMatchObject({ id: name, deleted: true })
  await opened.close()
  rmSync(place, { recursive: true })
})

it('takes a gate only from admins, with a validation file and a name that no model has', async () => {
  const make = async (who: Name, lowrank: object, validation_file?: string) => {
    const asked = { model: 'union-3m', training_file: THINGS.bob.file, validation_file, lowrank }
    const answer = await call(who, 'POST', '/v1/fine_tuning/jobs', asked)
    return [answer.status, (await answer.json()).error.message]
  }
  const { file } = THINGS.bob
  expect(await make('bob', { gate: { alias: 'best' } }, file)).toEqual([403, expect.stringMatching(/admin/)])
  expect(await make('root', { gate: { alias: 'best' } })).toEqual([400, expect.stringMatching(/validation_file/)])
  expect(await make('root', { gate: { alias: 'union-3m' } }, file)).toEqual([409, expect.stringMatching(/a model/)])
  expect(await make('root', { gate: { metric: 'loss' } }, file)).toEqual([400, expect.stringMatching(/lowrank/)])
})

it('tells jobs how many requests run, so that `--train-when idle` can wait for them', async () => {
  const heard: number[] = []
  const place = `${folder}-idle`
  const training = trainingIn(place, { when: 'idle' })
  const opened = await createHandler({
    ...{ model, hosts: ['localhost'], apiKeys: [{ key: 'x', isAdmin: true }] },
    training: {
      async open(server) {
        const jobs = await training.open(server)
        return Object.assign(jobs, { serves: (requests: number) => heard.push(requests) })
      },
    },
  })
  const headers = { authorization: 'Bearer x', 'content-type': 'application/json' }
  const body = JSON.stringify({ prompt: 'A boat', max_tokens: 4 })
  const ask = async () => opened(new Request('http://localhost/v1/completions', { method: 'POST', headers, body }))
  await Promise.all([ask(), ask()])
  expect([Math.max(...heard), heard.at(-1)]).toEqual([2, 0])
  await opened.close()
  rmSync(place, { recursive: true })
})

describe('files', () => {
  const form = (
    content: string,
    { name = 'rows.jsonl', ...more }: Record<string, string> = { purpose: 'fine-tune' },
  ) => {
    const made = new FormData()
    made.set('file', new File([content], name))
    for (const [field, value] of Object.entries(more)) made.set(field, value)
    return made
  }
  const upload = (content: string, more?: Record<string, string>) =>
    call('carol', 'POST', '/v1/files', form(content, more))

  it('come back byte for byte, and nobody else on the machine reads them', async () => {
    const content = `{"text":"é\\r\\n--"}\r\n\n{"text":"${'x'.repeat(200_000)}"}`
    const { id, bytes, status } = await (await upload(content)).json()
    expect([bytes, status]).toEqual([Buffer.byteLength(content), 'processed'])
    expect(await (await call('carol', 'GET', `/v1/files/${id}/content`)).text()).toBe(content)
    const modes = readdirSync(join(folder, 'files', id)).map(
      (name) => statSync(join(folder, 'files', id, name)).mode & 0o777,
    )
    expect([...modes, statSync(join(folder, 'store.sqlite')).mode & 0o777]).toEqual([0o600, 0o600])
    expect((await call('carol', 'DELETE', `/v1/files/${id}`)).status).toBe(200)
    expect(readdirSync(join(folder, 'files'))).not.toContain(id)
  })

  it.each([
    ['no JSON', '{"text":1}\n{', {}, /line 2 is not a JSON object/],
    ['a list', '[1]\n', {}, /line 1 is not a JSON object/],
    ['nothing', '\n', {}, /the file is empty/],
    ['another purpose', '{}', { purpose: 'vision' }, /purpose/],
    ['an unknown field', '{}', { colour: 'red' }, /colour/],
    ['a name of 10,000 characters', '{}', { name: 'x'.repeat(10_000) }, /name is longer than 255/],
  ])('with %s are refused, and leave nothing', async (_, content, more, message) => {
    const before = readdirSync(join(folder, 'files'))
    const answer = await upload(content, { purpose: 'fine-tune', ...more })
    expect([answer.status, (await answer.json()).error.message]).toEqual([400, expect.stringMatching(message)])
    expect(readdirSync(join(folder, 'files'))).toEqual(before)
  })
})

it('is told of in the terminal by `lowrank jobs`', async () => {
  const { url, close } = await listen((request) => handler(new Request(request, { headers: ofServer(request) })), {
    port: 0,
  })
  const jobs = (who: Name, ...args: string[]) =>
    lowrankHere('jobs', ...args, '--url', `${url}/v1`, '--api-key', KEYS[who])
  const { alice, bob } = THINGS
  expect((await jobs('root')).stdout).toMatch(new RegExp(`${bob.job}.*succeeded.*${bob.model}[^]*${alice.job}`))
  expect((await jobs('bob', 'list')).stdout).not.toContain(alice.job)
  expect(await jobs('bob', 'watch', bob.job)).toMatchObject({ code: 0, stderr: expect.stringContaining('succeeded') })
  expect(await jobs('bob', 'cancel', bob.job)).toMatchObject({ code: 1, stderr: expect.stringMatching(/has ended/) })
  expect(await jobs('bob', 'logs', alice.job)).toMatchObject({ code: 1, stderr: expect.stringMatching(/no job/) })
  expect(await jobs('bob', 'logs')).toMatchObject({ code: 2 })
  await close()
})

it('needs an admin key and the names of the server', async () => {
  const options = { model, training: trainingIn(`${folder}-other`) }
  await expect(createHandler({ ...options, apiKeys: ['x'], hosts: ['localhost'] })).rejects.toThrow(/an admin key/)
  const apiKeys = [{ key: 'x', isAdmin: true }]
  await expect(createHandler({ ...options, apiKeys })).rejects.toThrow(/`hosts`/)
})
