// The store of a server: lists page by page, changes that are committed together, damage, and a full disk.

import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import { loadModel, type Model } from 'lowrank'
import { backUpStore, checkStore, createHandler, exportStore, restoreStore, trainingIn } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Completions, insertChat } from '../../../src/serve/jobs/node/completions.js'
import { Files } from '../../../src/serve/jobs/node/files.js'
import type { Caller } from '../../../src/serve/keys.js'
import type { Call } from '../../../src/serve/route.js'
import { backUpDaily, backupsIn } from '../../../src/serve/store/node/backup.js'
import { openStore, requireLocks } from '../../../src/serve/store/node/open.js'
import { withKysely } from '../../../src/serve/store/node/peers.js'
import type { Store } from '../../../src/serve/store/store.js'
import { enginesHere } from '../../engines-here.js'

const scratch = fs.mkdtempSync(join(tmpdir(), 'lowrank-store-'))
let model: Model
beforeAll(enginesHere)
beforeAll(async () => {
  model = await loadModel('models/union-3m')
})
afterAll(async () => {
  await model.close()
  fs.rmSync(scratch, { recursive: true, force: true })
})

const fail = (error: unknown) => expect.unreachable(String(error))
const callerOf = (name: string, isAdmin = false): Caller => ({ name, key: name, isAdmin, priority: 0 })
const LIMITS = { maxStored: 1e9, maxStoredBytes: 1e12, maxAge: Number.POSITIVE_INFINITY }

/** Chats of three owners and two models; every 50th is good. */
const COUNT = 700
const chatOf = (i: number) => ({
  ...{ id: `chatcmpl-${i}`, owner: `owner-${i % 3}`, created_at: 1_700_000_000 + i },
  messages: [{ role: 'user', content: `And ${i}` }],
  answer: { id: `chatcmpl-${i}`, model: `m${i % 2}`, choices: [{ message: { role: 'assistant', content: 'Hi' } }] },
  metadata: { topic: `t${i % 5}`, ...(i % 50 === 0 && { rating: 'good' }) },
})

function keepAll(store: Store, count: number): Promise<void> {
  return store.write(async (rows) => {
    for (let i = 0; i < count; i++) await insertChat(rows, chatOf(i))
  })
}

describe('lists', () => {
  let store: Store
  let chats: Completions
  beforeAll(async () => {
    store = await openStore(fs.mkdtempSync(join(scratch, 'lists-')), fail)
    chats = new Completions(store, LIMITS)
    await keepAll(store, COUNT)
  })
  afterAll(() => store.close())

  const page = async (query: string, caller: Caller) => {
    const call = { request: new Request(`http://localhost/?${query}`), caller } as unknown as Call
    return (await chats.list(call)) as { data: { id: string }[]; has_more: boolean; last_id: string }
  }
  const all = Array.from({ length: COUNT }, (_, i) => chatOf(i))

  it.each<[string, (chat: (typeof all)[number]) => boolean]>([
    ['', () => true],
    ['model=m1', ({ answer }) => answer.model === 'm1'],
    ['metadata[rating]=good', ({ metadata }) => metadata.rating === 'good'],
    [
      'metadata[rating]=good&metadata[topic]=t0&model=m0',
      ({ metadata, answer }) => metadata.rating === 'good' && metadata.topic === 't0' && answer.model === 'm0',
    ],
    ['metadata[topic]=t3', ({ metadata }) => metadata.topic === 't3'],
    ['metadata[topic]=none', () => false],
  ])('have what fits, in pages that join, forwards and backwards: %s', async (filter, fits) => {
    for (const caller of [callerOf('owner-1'), callerOf('root', true)]) {
      const own = all.filter((chat) => (caller.isAdmin || chat.owner === caller.name) && fits(chat))
      for (const order of ['asc', 'desc']) {
        const found: string[] = []
        for (let after = ''; ; ) {
          const { data, has_more, last_id } = await page(`limit=30&order=${order}&${filter}${after}`, caller)
          found.push(...data.map(({ id }) => id))
          if (!has_more) break
          expect(data).toHaveLength(30)
          after = `&after=${last_id}`
        }
        const ids = own.map(({ id }) => id)
        expect(found).toEqual(order === 'asc' ? ids : ids.reverse())
      }
    }
  })

  it('begin after no chat of others', async () => {
    await expect(page('after=chatcmpl-0', callerOf('owner-1'))).rejects.toMatchObject({ status: 400, param: 'after' })
  })
})

it('keeps sums of what owners have, and drops chats that are too old in batches', async () => {
  const store = await openStore(fs.mkdtempSync(join(scratch, 'old-')), fail)
  await keepAll(store, COUNT)
  const left = 100
  const maxAge = Math.floor(Date.now() / 1000) - 1_700_000_000 - (COUNT - left)
  const chats = new Completions(store, { ...LIMITS, maxAge })
  await chats.sweep()
  const rows = await store.rows.selectFrom('chats').select(['owner', 'bytes', 'seq']).execute()
  // A second may have passed.
  expect(rows.length).toBeGreaterThan(left - 5)
  expect(rows.length).toBeLessThanOrEqual(left)
  const sums = await store.rows.selectFrom('sums').selectAll().orderBy('owner').execute()
  for (const { owner, count, bytes } of sums) {
    const own = rows.filter((row) => row.owner === owner)
    expect([count, bytes]).toEqual([own.length, own.reduce((sum, row) => sum + row.bytes, 0)])
  }
  const labelled = await store.rows.selectFrom('labels').select('seq').distinct().execute()
  expect(labelled.map(({ seq }) => seq).sort()).toEqual(rows.map(({ seq }) => seq).sort())
  await store.close()
})

it('takes changes that come together, without those that fail', async () => {
  const store = await openStore(fs.mkdtempSync(join(scratch, 'together-')), fail)
  const results = await Promise.allSettled(
    Array.from({ length: 200 }, (_, i) =>
      store.write(async (rows) => {
        await rows
          .insertInto('aliases')
          .values({ name: `${i}`, model: 'm', created_at: 1 })
          .execute()
        if (i % 7 === 0) throw new Error(`change ${i}`)
        if (i % 11 === 0)
          await rows
            .insertInto('aliases')
            .values({ name: `${i}`, model: 'm', created_at: 1 })
            .execute()
        return i
      }),
    ),
  )
  const kept = results.flatMap((result) => (result.status === 'fulfilled' ? [`${result.value}`] : []))
  expect(kept).toHaveLength(Array.from({ length: 200 }, (_, i) => i).filter((i) => i % 7 && i % 11).length)
  const names = await store.rows.selectFrom('aliases').select('name').execute()
  expect(names.map(({ name }) => name).sort()).toEqual(kept.sort())
  await store.close()
})

describe('a store that cannot be used', () => {
  const damaged = async (name: string, damage: (file: string) => void) => {
    const folder = fs.mkdtempSync(join(scratch, 'damaged-'))
    const store = await openStore(folder, fail)
    await keepAll(store, 20)
    await store.close()
    const file = join(folder, 'store.sqlite')
    damage(file)
    const bytes = fs.readFileSync(file)
    const failure = await openStore(folder, () => {}).then(
      (opened) => opened.close(),
      (error) => error,
    )
    expect(failure?.message, name).toContain(file)
    expect(fs.readFileSync(file).equals(bytes), name).toBe(true)
  }

  it('is named, and the file stays as it is', async () => {
    await damaged('no header', (file) => fs.writeFileSync(file, 'no database'))
    await damaged('cut off', (file) => fs.truncateSync(file, fs.statSync(file).size >> 1))
    await damaged('within a page', (file) => fs.truncateSync(file, fs.statSync(file).size - 100))
    await damaged('without the log of a server that did not stop', (file) =>
      fs.writeFileSync(join(file, '../store.open'), ''),
    )
  })

  it('of a newer version is refused', async () => {
    const folder = fs.mkdtempSync(join(scratch, 'newer-'))
    const store = await openStore(folder, fail)
    await store.write((rows) => {
      const migration = { name: '9', timestamp: '2030-01-01T00:00:00.000Z' }
      return (rows as never as { insertInto(name: string): { values(row: object): { execute(): Promise<void> } } })
        .insertInto('kysely_migration')
        .values(migration)
        .execute()
    })
    await store.close()
    await expect(openStore(folder, fail)).rejects.toMatchObject({ what: 'made by a newer version of lowrank' })
  })

  it('on NFS, SMB or FUSE is refused', () => {
    // `stat -f -c %t` names these types.
    for (const [type, got] of [
      [0x6969, 'NFS'],
      [0xff534d42 | 0, 'SMB'],
      [0xfe534d42, 'SMB'],
      [0x65735546, 'FUSE'],
    ] as const)
      expect(() => requireLocks('/data', type)).toThrow(expect.objectContaining({ where: '/data', got }))
    const local = [0xef53, 0x58465342, 0x9123683e, 0x01021994, 0x794c7630]
    for (const type of local) requireLocks('/data', type)
  })

  it('because a package is missing says what to install', async () => {
    const error = Object.assign(new Error("Cannot find package 'kysely' imported from x"), {
      code: 'ERR_MODULE_NOT_FOUND',
    })
    const missing = withKysely(() => Promise.reject(error))
    await expect(missing).rejects.toMatchObject({ hint: 'Run npm install libsql@0.5 kysely@0.28' })
  })
})

describe('with a damaged database', () => {
  const filled = async () => {
    const folder = fs.mkdtempSync(join(scratch, 'broken-'))
    const store = await openStore(folder, fail)
    await keepAll(store, COUNT)
    await backUpDaily(store)
    await store.close()
    return folder
  }
  const options = () => ({
    ...{ model, hosts: ['localhost'], adapters: { sea: 'tests/golden/peft/f32' } },
    apiKeys: [{ key: 'x', isAdmin: true }],
  })

  it('models answer, and each route that needs the store names the last backup', async () => {
    const folder = await filled()
    const [backup] = fs.readdirSync(join(folder, 'backups'))
    fs.truncateSync(join(folder, 'store.sqlite'), 100)
    const log: unknown[] = []
    const on = { error: (error: unknown) => void log.push(String(error)) }
    const handler = await createHandler({ ...options(), training: trainingIn(folder), on })
    const ask = async (path: string, body?: object) => {
      const headers = { authorization: 'Bearer x', 'content-type': 'application/json' }
      const sent = body && { method: 'POST', body: JSON.stringify(body) }
      const answer = await handler(new Request(`http://localhost/v1${path}`, { headers, ...sent }))
      return [answer.status, await answer.text()] as const
    }
    const asked = { prompt: 'And', max_tokens: 1 }
    for (const name of ['union-3m', 'sea']) {
      expect((await ask('/completions', { ...asked, model: name }))[0], name).toBe(200)
    }
    expect((await ask('/models'))[0]).toBe(200)
    const routes = ['/files', '/fine_tuning/jobs', '/chat/completions', '/aliases', '/chat/completions/chatcmpl-1']
    const answers = await Promise.all([
      ...routes.map((route) => ask(route)),
      ask('/completions', { ...asked, model: 'ft:union-3m:lowrank:boat:1234567890' }),
    ])
    expect(answers).toEqual(answers.map(() => [503, expect.stringContaining(backup)]))
    await handler.close()
    expect(log).toEqual([expect.stringContaining('store.sqlite')])
    const strict = createHandler({ ...options(), training: trainingIn(folder, { storeRequired: true }) })
    await expect(strict).rejects.toMatchObject({ what: 'the database is damaged' })
  })

  it('what can be read is exported, and a backup restores all', async () => {
    const folder = await filled()
    const [backup] = await backupsIn(folder)
    const file = join(folder, 'store.sqlite')
    const size = fs.statSync(file).size
    const handle = fs.openSync(file, 'r+')
    for (let at = 40 * 4096; at < size; at += 40 * 4096) fs.writeSync(handle, Buffer.alloc(4096, 0xa5), 0, 4096, at)
    fs.closeSync(handle)
    const before = fs.readFileSync(file)
    expect(await checkStore(folder)).not.toEqual([])
    const { chats } = await exportStore(folder, `${folder}-lines`)
    expect(fs.readFileSync(file).equals(before)).toBe(true)
    expect([chats.rows > COUNT / 2, chats.lost > 0, chats.rows + chats.lost]).toEqual([true, true, COUNT])
    const lines = fs.readFileSync(`${folder}-lines/chats.jsonl`, 'utf8').trim().split('\n')
    expect(lines).toHaveLength(chats.rows)
    for (const line of lines) {
      const chat = JSON.parse(line)
      expect(chat).toEqual(chatOf(Number(chat.id.slice('chatcmpl-'.length))))
    }
    await restoreStore(backup, `${folder}-restored`)
    expect(await checkStore(`${folder}-restored`)).toEqual([])
    const { chats: all } = await exportStore(`${folder}-restored`, `${folder}-all`)
    expect(all).toEqual({ rows: COUNT, lost: 0 })
  })
})

describe('backups', () => {
  it('are made beside a server that writes, with bytes, and refuse what is damaged', async () => {
    const folder = fs.mkdtempSync(join(scratch, 'backup-'))
    const store = await openStore(folder, fail)
    const files = new Files(store, { maxFileBytes: 1e6, maxOwnerBytes: 1e9, maxAge: Number.POSITIVE_INFINITY })
    const text = '{"text":"The boat is red."}\n'
    const { id } = (await files.createFrom({ caller: callerOf('a') } as Call, text)) as { id: string }
    const writing = keepAll(store, COUNT)
    await backUpStore(folder, `${folder}-copy`)
    await writing
    await store.close()
    await restoreStore(`${folder}-copy`, `${folder}-back`)
    expect(fs.readFileSync(join(`${folder}-back`, 'files', id, 'content.jsonl'), 'utf8')).toBe(text)
    expect(await checkStore(`${folder}-back`)).toEqual([])
    const copied = join(`${folder}-copy`, 'files', id, 'content.jsonl')
    fs.rmSync(copied)
    fs.writeFileSync(copied, text.replace('red', 'RED'))
    await expect(restoreStore(`${folder}-copy`, `${folder}-bad`)).rejects.toMatchObject({ where: copied })
    expect(fs.existsSync(`${folder}-bad`)).toBe(false)
    await expect(backUpStore(folder, `${folder}-copy`)).rejects.toMatchObject({ code: 'FILE' })
  })

  it('are made once a day, and three are kept', async () => {
    const folder = fs.mkdtempSync(join(scratch, 'daily-'))
    const store = await openStore(folder, fail)
    const now = Date.now()
    const made = []
    for (const days of [0, 0.5, 1.1, 2.2, 3.3]) {
      const time = now + days * 86_400_000
      const before = (await backupsIn(folder)).at(-1)
      await backUpDaily(store, time)
      const last = (await backupsIn(folder)).at(-1)!
      if (last !== before) made.push(last)
      if (last !== before) fs.utimesSync(last, time / 1000, time / 1000)
    }
    expect(made).toHaveLength(4)
    expect(await backupsIn(folder)).toEqual(made.slice(1))
    expect(fs.readdirSync(join(folder, 'backups'))).toHaveLength(3)
    expect(fs.statSync(join(folder, 'backups')).mode & 0o777).toBe(0o700)
    await store.close()
  })
})

it('answers with a full disk, says what was not stored, and stores again when there is room', async () => {
  const folder = fs.mkdtempSync(join(scratch, 'full-'))
  const log: unknown[] = []
  const training = trainingIn(folder)
  let store!: Store
  const handler = await createHandler({
    ...{ model, hosts: ['localhost'], chatTemplate: '{% for m in messages %}{{ m.content }}{% endfor %}' },
    training: {
      async open(server) {
        const jobs = await training.open(server)
        store = (jobs.completions as unknown as { store: Store }).store
        return jobs
      },
    },
    ...{ apiKeys: [{ key: 'x', isAdmin: true }], on: { error: (error) => void log.push(error) } },
  })
  const ask = (path: string, body?: object | FormData) => {
    const isForm = body instanceof FormData
    const headers = { authorization: 'Bearer x', ...(!isForm && { 'content-type': 'application/json' }) }
    const sent = body && { method: 'POST', body: isForm ? body : JSON.stringify(body) }
    return handler(new Request(`http://localhost/v1${path}`, { headers, ...sent }))
  }
  const chat = { messages: [{ role: 'user', content: 'And', name: 'x'.repeat(6000) }], max_tokens: 2, store: true }
  const form = new FormData()
  form.set('purpose', 'fine-tune')
  form.set('file', new File(['{"text":"x"}\n'], `${'x'.repeat(200)}.jsonl`))
  const listed = async (path: string) => (await (await ask(path)).json()).data.length

  // The database may have no more pages than it has.
  await store.write((rows) => sql`PRAGMA max_page_count = 1`.execute(rows))
  let stored = 0
  let whole = await ask('/chat/completions', chat)
  for (; stored < 100 && whole.headers.get('x-lowrank-stored') === null; stored++)
    whole = await ask('/chat/completions', chat)
  expect([whole.status, (await whole.json()).choices.length]).toEqual([200, 1])
  const streamed = await (await ask('/chat/completions', { ...chat, stream: true })).text()
  const [last, done] = streamed.trim().split('\n\n').slice(-2)
  expect([JSON.parse(last.slice(6))['x-lowrank-stored'], done]).toEqual(['no', 'data: [DONE]'])
  let upload = await ask('/files', form)
  let files = 0
  for (; upload.status === 200 && files < 200; files++) upload = await ask('/files', form)
  expect([upload.status, upload.headers.get('x-should-retry')]).toEqual([507, 'false'])
  expect([await listed('/chat/completions'), await listed('/files?limit=1000')]).toEqual([stored, files])
  expect(fs.readdirSync(join(folder, 'files'))).toHaveLength(files)

  await store.write((rows) => sql`PRAGMA max_page_count = 100000`.execute(rows))
  expect((await ask('/chat/completions', chat)).headers.get('x-lowrank-stored')).toBe(null)
  expect((await ask('/files', form)).status).toBe(200)
  expect(await listed('/chat/completions')).toBe(stored + 1)
  await handler.close()
})
