// The folder of a server that trains: one damaged file costs one object, and what is not the server's stays. The folder
// is written by hand as earlier servers had it, so that no process starts, and taken over.

import { createHash } from 'node:crypto'
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler, trainingIn } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { groupBy } from '../../../src/core/base/group.js'
import { goldenPath } from '../../golden.js'
import { some } from '../../thorough.js'

const scratch = fs.mkdtempSync(join(tmpdir(), 'lowrank-damaged-'))
/** As an earlier server left it. */
const earlier = join(scratch, 'earlier')
const whole = join(scratch, 'whole')
/** A copy, whose files are damaged in turn. */
const folder = join(scratch, 'copy')
let answered: Map<string, string>
const log: unknown[] = []
let model: Model

const idsOf = (digit: string) => ({
  files: `file-${digit.repeat(24)}`,
  jobs: `ftjob-${digit.repeat(24)}`,
  completions: `chatcmpl-${digit.repeat(8)}`,
})
const MODEL_OF = (digit: string) => `ft:union-3m:lowrank:boat:${digit.repeat(10)}`
const HERE = idsOf('a')
const ADAPTER = ['adapter_config.json', 'adapter_model.safetensors']
const OF_RUN = [
  ...['metrics.jsonl', 'evaluations.jsonl', 'lowrank.json', 'run.json', 'report.html', 'README.md'],
  ...['training-state.safetensors', 'chat_template.jinja', ...ADAPTER],
]
const OF_JOB = [
  ...['record.json', 'events.jsonl', 'training.jsonl', 'validation.jsonl', 'settings.json', 'grader.json', 'log.txt'],
  ...[...OF_RUN.map((name) => `run/${name}`), ...ADAPTER.map((name) => `checkpoints/step-3/${name}`)],
]

function write(file: string, content: string | Uint8Array): void {
  fs.mkdirSync(dirname(file), { recursive: true })
  fs.writeFileSync(file, content)
}

/** Writes one entry of each kind, as the server does. */
function writeEntries(folder: string, digit: string): void {
  const ids = idsOf(digit)
  const put = (kind: keyof typeof ids, record: object) => {
    const place = join(folder, kind, ids[kind])
    const about = { id: ids[kind], owner: 'default', created_at: 1_700_000_000, ...record }
    write(join(place, 'record.json'), JSON.stringify(about))
    return place
  }
  const row = '{"text": "The boat is red."}\n'
  write(join(put('files', { bytes: 29, filename: 'x', purpose: 'fine-tune' }), 'content.jsonl'), row)
  const message = { role: 'assistant', content: 'Hi', refusal: null }
  put('completions', {
    ...{ metadata: {}, messages: [{ role: 'user', content: 'Hello' }] },
    answer: { id: ids.completions, model: 'union-3m', choices: [{ index: 0, message, finish_reason: 'stop' }] },
  })
  const place = put('jobs', {
    ...{ model: 'union-3m', base: 'union-3m', training_file: ids.files, validation_file: null, method: 'supervised' },
    ...{ suffix: 'boat', seed: 1, metadata: null, lowrank: {}, hyperparameters: {}, isPaused: false, turns: 0 },
    ...{ status: 'succeeded', checkpointEvery: 3, error: null, finished_at: 1_700_000_001, estimated_finish: null },
    ...{ trained_tokens: 9, result_files: [], deleted: [] },
    checkpoints: [
      { step: 3, created_at: 1_700_000_000, metrics: {} },
      { step: 6, created_at: 1_700_000_000, metrics: {}, isResult: true },
    ],
  })
  const event = { id: `ftevent-${digit}-created`, object: 'fine_tuning.job.event', created_at: 1_700_000_000 }
  write(join(place, 'events.jsonl'), `${JSON.stringify({ ...event, level: 'info', message: 'Created', data: null })}\n`)
  for (const name of OF_JOB) {
    const file = join(place, name)
    if (name.includes('adapter_')) write(file, fs.readFileSync(join(goldenPath('peft', 'f32'), basename(name))))
    else if (!fs.existsSync(file)) write(file, '{"step": 1, "loss": 2}\n')
  }
}

beforeAll(async () => {
  model = await loadModel('models/union-3m')
  for (const digit of ['a', 'b']) writeEntries(earlier, digit)
  write(join(earlier, 'lowrank-server.json'), '{}')
  write(join(earlier, 'aliases.json'), JSON.stringify([{ name: 'best', model: MODEL_OF('b'), created: 1_700_000_000 }]))
  fs.cpSync(earlier, whole, { recursive: true })
  const handler = await opened(whole)
  answered = await answers(handler, whole)
  await handler.close()
  expect(log).toEqual([])
  expect([...answered].filter(([, answer]) => /^[45]/.test(answer))).toEqual([])
  fs.cpSync(whole, folder, { recursive: true })
})
afterAll(async () => {
  await model.close()
  fs.rmSync(scratch, { recursive: true, force: true })
})

function opened(folder: string): Promise<Handler> {
  const error = (error: unknown) => void log.push(String(error))
  const apiKeys = [{ key: 'secret', isAdmin: true }]
  return createHandler({ model, training: trainingIn(folder), apiKeys, hosts: ['localhost'], on: { error } })
}

async function ask(handler: Handler, method: string, path: string, body?: object): Promise<string> {
  const headers = { 'content-type': 'application/json', authorization: 'Bearer secret' }
  const init = { method, headers, ...(body && { body: JSON.stringify(body) }) }
  const response = await handler(new Request(`http://localhost${path}`, init))
  const text = await response.text().catch(String)
  return `${response.status} ${text}`
}

/** What each object answers, under its place in the folder. */
async function answers(handler: Handler, place = folder): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  const note = async (name: string, method: string, path: string, body?: object) =>
    found.set(name, (await ask(handler, method, path, body)).replace(/"(id|created)":("cmpl-[^"]*"|\d{10})/g, ''))
  const lists = ['files', 'fine_tuning/jobs', 'models', 'chat/completions', 'aliases']
  for (const name of lists) {
    const { data } = JSON.parse((await ask(handler, 'GET', `/v1/${name}`)).slice(4)) as { data: { id: string }[] }
    for (const entry of data) found.set(`${name}: ${entry.id}`, JSON.stringify(entry).replace(/"created":\d+/, ''))
  }
  for (const digit of ['a', 'b']) {
    const { files, jobs, completions } = idsOf(digit)
    await note(`${files}, record`, 'GET', `/v1/files/${files}`)
    await note(`${files}, content`, 'GET', `/v1/files/${files}/content`)
    for (const path of ['', '/events', '/checkpoints']) {
      await note(`${jobs}, ${path}`, 'GET', `/v1/fine_tuning/jobs/${jobs}${path}`)
    }
    for (const path of ['', '/messages'])
      await note(`${completions}${path}`, 'GET', `/v1/chat/completions/${completions}${path}`)
    const text = { prompt: 'And', max_tokens: 2, temperature: 0 }
    await note(`${jobs}, model`, 'POST', '/v1/completions', { ...text, model: MODEL_OF(digit) })
    await note(`${jobs}, step`, 'POST', '/v1/completions', { ...text, model: `${MODEL_OF(digit)}:ckpt-step-3` })
    await note(`aliases.json: best`, 'POST', '/v1/completions', { ...text, model: 'best' })
  }
  return new Map([...found].map(([name, answer]) => [name, answer.replaceAll(place, '')]))
}

/** All files below a folder. */
const filesIn = (folder: string): string[] =>
  fs.readdirSync(folder, { recursive: true, withFileTypes: true }).flatMap((entry) => {
    return entry.isFile() ? [join(entry.parentPath, entry.name).slice(folder.length + 1)] : []
  })

/** The state of a thing that may be a file, a folder or a link. */
function digestOf(file: string): string {
  const status = fs.lstatSync(file)
  if (status.isSymbolicLink()) return `link to ${fs.readlinkSync(file)}`
  if (status.isDirectory()) return `folder of ${fs.readdirSync(file)}`
  return createHash('sha256').update(fs.readFileSync(file)).digest('hex')
}

const over = (content: (old: Buffer) => string | Uint8Array) => (file: string) =>
  fs.writeFileSync(file, content(fs.readFileSync(file)))
const replacedBy = (make: (file: string) => void) => (file: string) => {
  fs.rmSync(file)
  make(file)
}
const DAMAGES: Record<string, (file: string) => void> = {
  truncated: over((old) => old.subarray(0, old.length >> 1)),
  empty: over(() => ''),
  random: over((old) => old.map((_, i) => (i * 2_654_435_761) >>> 13)),
  zeros: over((old) => new Uint8Array(old.length)),
  null: over(() => 'null'),
  'another type': over(() => '"text"'),
  'an empty object': over(() => '{}'),
  'members of other types': over(
    (old) => `{${[...String(old).matchAll(/"(\w+)":/g)].map(([, name]) => `"${name}":true`)}}`,
  ),
  'a folder in its place': replacedBy((file) => fs.mkdirSync(file)),
  'a link to itself': replacedBy((file) => fs.symlinkSync(file, file)),
  ...(process.platform === 'linux' && { EIO: replacedBy((file) => fs.symlinkSync('/proc/self/mem', file)) }),
}

/** Files that are looked at when the server starts, or when their model is asked. */
const READ = /content\.jsonl$|adapter_/
/** Damages that leave bytes which cannot be told from the right ones: nothing stores a digest. */
const UNSEEN: [file: RegExp, damage: RegExp][] = [[/content\.jsonl$|\.safetensors$/, /random|zeros/]]

/** All files of the first owner, with those of the server, but for the database. */
const IN_DATABASE = ['record.json', 'events.jsonl']
const FILES = [
  'completions/now-in-the-database/README.txt',
  `files/${HERE.files}/content.jsonl`,
  ...OF_JOB.filter((name) => !IN_DATABASE.includes(name)).map((name) => `jobs/${HERE.jobs}/${name}`),
]
/** What an earlier server kept of them in files. */
const RECORDS = [
  ...Object.entries(HERE).map(([kind, id]) => `${kind}/${id}/record.json`),
  ...[`jobs/${HERE.jobs}/events.jsonl`, 'aliases.json'],
]

describe('a damaged file costs its own object alone, stays as it is, and is named in the log', () => {
  it('of each kind that the server writes', () => {
    expect(
      filesIn(whole)
        .filter((file) => !file.includes('b'.repeat(8)) && !/^(before-database|store\.)/.test(file))
        .sort(),
    ).toEqual(FILES.toSorted())
  })

  it.skipIf(process.platform !== 'linux').each(['docs/reliability.md', 'SECURITY.md'])('as %s tells', (page) => {
    const told = new RegExp(`${FILES.length} kinds of files (are damaged )?in ${Object.keys(DAMAGES).length} ways each`)
    expect(fs.readFileSync(page, 'utf8')).toMatch(told)
  })

  // Files of one object that are read only when somebody asks for them are damaged together: a start takes long.
  const together = [...groupBy(FILES, (file) => (READ.test(file) ? file : dirname(file))).values()]
  it.each(together.map((files) => [files.join(', '), files] as const))('%s', async (_, files) => {
    const isItsOwn = ownedBy(files[0])
    for (const [damage, make] of some(Object.entries(DAMAGES), READ.test(files[0]) ? 2 : 5)) {
      const about = `${files}: ${damage}`
      const targets = files.map((file) => join(folder, file))
      for (const target of targets) make(target)
      const states = targets.map(digestOf)
      log.length = 0
      const server = await opened(folder)
      const after = await answers(server)
      await server.close()
      for (const [name, answer] of answered) {
        if (!isItsOwn(name)) expect(after.get(name), `${about}, ${name}`).toBe(answer)
      }
      expect(targets.map(digestOf), about).toEqual(states)
      for (const [i, file] of files.entries()) {
        const isSeen = READ.test(file) && !UNSEEN.some(([kinds, damages]) => kinds.test(file) && damages.test(damage))
        // Of an adapter, its folder is named, and the file in it if it is there.
        if (isSeen)
          expect(log.join('\n'), about).toContain(file.includes('adapter_') ? dirname(targets[i]) : targets[i])
        fs.rmSync(targets[i], { recursive: true })
        fs.cpSync(join(whole, file), targets[i])
      }
    }
  })
})

/** True for names in `answers` of what is lost with a file. */
const ownedBy = (file: string) => {
  const others: Record<string, string> = { [HERE.jobs]: MODEL_OF('a'), 'aliases.json': ': best' }
  const owner = Object.values(HERE).find((id) => file.includes(id)) ?? file
  return (name: string) => name.includes(owner) || name.includes(others[owner] ?? owner)
}

describe('a folder of an earlier server is taken over', () => {
  const movedTo = (place: string, file: string) => join(place, 'before-database', file)

  it('with all that it has; its records are moved, and an earlier server refuses it', async () => {
    const files = filesIn(earlier)
    for (const file of files) {
      const isRecord = /record\.json$|events\.jsonl$|^aliases\.json$|^lowrank-server/.test(file)
      const now = isRecord ? movedTo(whole, file) : join(whole, file)
      expect(digestOf(now), file).toBe(digestOf(join(earlier, file)))
      if (isRecord) expect(fs.existsSync(join(whole, file)), file).toBe(false)
    }
    // Earlier servers refuse a completion of another name.
    expect(fs.readdirSync(join(whole, 'completions'))).toEqual(['now-in-the-database'])
  })

  it.each(RECORDS)('but for a damaged %s, which stays as it is until it can be read', async (file) => {
    const wanted = some(Object.entries(DAMAGES), 4)
    for (const [damage, make] of wanted) {
      const about = `${file}: ${damage}`
      const place = fs.mkdtempSync(join(scratch, 'taken-'))
      fs.cpSync(earlier, place, { recursive: true })
      make(join(place, file))
      const state = digestOf(join(place, file))
      log.length = 0
      const server = await opened(place)
      const after = await answers(server, place)
      await server.close()
      const isOwn = ownedBy(file)
      for (const [name, answer] of answered) if (!isOwn(name)) expect(after.get(name), `${about}, ${name}`).toBe(answer)
      const isMoved = !fs.existsSync(join(place, file)) && !fs.lstatSync(join(place, file), { throwIfNoEntry: false })
      expect(digestOf(isMoved ? movedTo(place, file) : join(place, file)), about).toBe(state)
      if (!file.endsWith('events.jsonl')) expect(log.join('\n'), about).toContain(join(place, file))
      if (isMoved) continue
      fs.rmSync(join(place, file), { recursive: true })
      fs.cpSync(join(earlier, file), join(place, file))
      const next = await opened(place)
      expect(await answers(next, place), about).toEqual(answered)
      await next.close()
    }
  })

  const aliases = ['first', 'second', 'third'].map((name) => ({ name, model: MODEL_OF('b'), created: 1_700_000_000 }))
  const [first, second, third] = aliases.map((alias) => JSON.stringify(alias))

  it.each<[string, string | Uint8Array, string[]]>([
    ['that ends too soon', `[${first},${second},${third.slice(0, -3)}`, ['first', 'second']],
    ['with an entry of another form', `[${first},${second.replace('"model"', '"mode"')},${third}]`, ['first', 'third']],
    ['with zeros at its start', `${'\0'.repeat(9)}${first.slice(9)},${second},${third}]`, ['second', 'third']],
    ['with a broken name', Buffer.from(`[${first},${second},${third}]`).fill(0xff, 10, 11), ['second', 'third']],
    ['that is empty', '', []],
  ])('with the aliases that can be read, of a file %s', async (_, content, left) => {
    const place = fs.mkdtempSync(join(scratch, 'aliases-'))
    fs.cpSync(earlier, place, { recursive: true })
    fs.writeFileSync(join(place, 'aliases.json'), content)
    log.length = 0
    const server = await opened(place)
    const { data } = JSON.parse((await ask(server, 'GET', '/v1/aliases')).slice(4)) as { data: { name: string }[] }
    expect(data.map(({ name }) => name)).toEqual(left)
    expect(log).toEqual([expect.stringContaining(join(place, 'aliases.json'))])
    expect(fs.readFileSync(movedTo(place, 'aliases.json'))).toEqual(Buffer.from(content))
    await server.close()
  })
})

const digestsOf = (root: string, files: readonly string[]) => files.map((file) => digestOf(join(root, file)))

/** All names below a folder, with the content of each file. */
const treeOf = (root: string) =>
  filesIn(root)
    .sort()
    .map((file) => [file, digestOf(join(root, file))])

describe('a folder of training', () => {
  it.each([
    ['files/photos/wedding.jpg', 'jobs/thesis/chapter.txt', 'files/notes.txt'],
    ['completions/mine'],
    ['jobs/ftjob-mine/record.json'],
    [`files/${HERE.files}/wedding.jpg`],
    ['letters.txt'],
  ])('that has other things is refused, and they stay: %s', async (...names) => {
    const place = fs.mkdtempSync(join(scratch, 'foreign-'))
    for (const name of names) write(join(place, name), 'mine')
    const before = treeOf(place)
    await expect(opened(place)).rejects.toMatchObject({ code: 'FILE', what: 'it has other things in it' })
    expect(treeOf(place)).toEqual(before)
    expect(fs.readdirSync(place).sort()).toEqual([...new Set(names.map((name) => name.split('/')[0]))].sort())
  })

  it('that has only what a file system makes counts as empty, and gets a store', async () => {
    const place = fs.mkdtempSync(join(scratch, 'empty-'))
    for (const name of ['lost+found', '.Trash']) fs.mkdirSync(join(place, name))
    await (await opened(place)).close()
    expect(fs.readdirSync(place)).toEqual(expect.arrayContaining(['.Trash', 'lost+found', 'store.sqlite']))
    // From then on the owner's things in it stay, and are named.
    const mine = ['files/photos/wedding.jpg', 'jobs/thesis/chapter.txt', 'jobs/notes.txt', 'letters.txt']
    for (const name of mine) write(join(place, name), 'mine')
    const before = digestsOf(place, mine)
    log.length = 0
    await (await opened(place)).close()
    expect(digestsOf(place, mine)).toEqual(before)
    for (const name of ['files/photos', 'jobs/thesis', 'jobs/notes.txt'])
      expect(log.join()).toContain(join(place, name))
  })

  it('without the marker goes on if all in it is a server’s, and loses only what was never finished', async () => {
    const place = join(scratch, 'of-today')
    fs.cpSync(earlier, place, { recursive: true })
    fs.rmSync(join(place, 'lowrank-server.json'))
    const [unfinished, lost] = ['c', 'd'].map((digit) => idsOf(digit))
    write(join(place, 'files', unfinished.files, 'content.jsonl'), '{"te')
    write(join(place, 'jobs', unfinished.jobs, 'training.jsonl'), '{}')
    write(join(place, 'jobs', unfinished.jobs, '.record.json.01234567-1--01234567.tmp/record.json'), '{')
    const server = await opened(place)
    expect(await answers(server, place)).toEqual(answered)
    await server.close()
    const left = (folder: string) => filesIn(folder).filter((file) => !/^store\.|lowrank-server/.test(file))
    expect(left(place).sort()).toEqual(left(whole).sort())
    // A job whose record is gone has more than unfinished files: its adapter stays.
    write(join(place, 'jobs', lost.jobs, 'run/adapter_model.safetensors'), 'trained')
    log.length = 0
    await (await opened(place)).close()
    expect(log.join()).toContain(lost.jobs)
    expect(fs.readFileSync(join(place, 'jobs', lost.jobs, 'run/adapter_model.safetensors'), 'utf8')).toBe('trained')
  })

  it('keeps what others put beside the files of an entry that is removed', async () => {
    const place = join(scratch, 'removed')
    fs.cpSync(whole, place, { recursive: true })
    const [file, run] = [join(place, 'files', HERE.files), join(place, 'jobs', HERE.jobs, 'run')]
    for (const entry of [file, run]) write(join(entry, 'photos/wedding.jpg'), 'mine')
    const server = await opened(place)
    expect(await ask(server, 'DELETE', `/v1/files/${HERE.files}`)).toMatch(/^200/)
    expect(await ask(server, 'DELETE', `/v1/models/${encodeURIComponent(MODEL_OF('a'))}`)).toMatch(/^200/)
    expect(await ask(server, 'DELETE', `/v1/files/${idsOf('b').files}`)).toMatch(/^200/)
    await server.close()
    for (const entry of [file, run]) expect(filesIn(entry)).toEqual(['photos/wedding.jpg'])
    expect(fs.existsSync(join(place, 'files', idsOf('b').files))).toBe(false)
  })
})
