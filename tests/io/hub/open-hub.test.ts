import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, rename, rm, stat, writeFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { readAll, readJson } from '../../../src/base/bytes.js'
import { FileError } from '../../../src/base/errors.js'
import type { DownloadProgress } from '../../../src/io/hub/directory.js'
import { type OpenHubOptions, openHub } from '../../../src/io/hub/node/open-hub.js'
import { type HubSource, parseSource } from '../../../src/io/source.js'
import { FakeHub, gitSha1, STRANGER, sha256, TOKEN } from './server.js'

const text = (content: string) => new TextEncoder().encode(content)
/** Bytes that no compression and no shift hides. */
const noise = (byteLength: number) => Uint8Array.from({ length: byteLength }, (_, i) => (i * 2654435761) >>> 13)

const WEIGHTS = noise(300_000)
const FILES = {
  'config.json': text('{"model_type": "llama"}'),
  'README.md': text('# A model'),
  'onnx/model.onnx': WEIGHTS,
  'pytorch_model.bin': noise(5000),
}

/** Far faster than comparing arrays element by element. */
const isWeights = (bytes: Uint8Array) => Buffer.compare(bytes, WEIGHTS) === 0

let home: string
let hub: FakeHub
let progress: DownloadProgress[]
let warnings: string[]

beforeEach(async () => {
  home = await mkdtemp(path.join(tmpdir(), 'lowrank-hub-'))
  hub = await new FakeHub().start()
  hub.repositories.set('org/model', { files: FILES, lfs: ['onnx/model.onnx', 'pytorch_model.bin'] })
  progress = []
  warnings = []
})

afterEach(async () => {
  await hub.stop()
  await rm(home, { recursive: true, force: true })
})

function variables(more: Record<string, string> = {}) {
  return { HF_HOME: home, HF_ENDPOINT: hub.endpoint, ...more }
}

function open(id: string, more: Record<string, string> = {}, options: OpenHubOptions = {}) {
  return openHub(parseSource(`hf:${id}`, { where: 'model' }) as HubSource, {
    variables: variables(more),
    times: { stallMs: 2000, retryMs: 5 },
    onDownload: (event) => progress.push(event),
    onWarning: (message) => warnings.push(message),
    ...options,
  })
}

async function contentOf(id: string, file: string, more?: Record<string, string>, options?: OpenHubOptions) {
  const source = await (await open(id, more, options)).open(file)
  try {
    return await readAll(source)
  } finally {
    await source.close()
  }
}

async function failure(promise: Promise<unknown>): Promise<FileError> {
  const error = await promise.then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(FileError)
  return error
}

const inCache = (...parts: string[]) => path.join(home, 'hub', 'models--org--model', ...parts)
const blob = (bytes: Uint8Array) => inCache('blobs', sha256(bytes))

describe('what comes', () => {
  test('the files that are opened and no others, into the layout of huggingface_hub', async () => {
    const directory = await open('org/model')
    expect(directory.name).toBe('org/model')
    expect(await directory.list()).toEqual(['README.md', 'config.json', 'pytorch_model.bin'])
    expect(await directory.folders()).toEqual(['onnx'])
    expect(await readJson(directory, 'config.json')).toEqual({ model_type: 'llama' })
    const source = await directory.open('onnx/model.onnx')
    expect(isWeights(await readAll(source))).toBe(true)
    expect(source.realPath).toBe(blob(WEIGHTS))
    await source.close()
    expect(hub.loaded).toEqual(['config.json', 'onnx/model.onnx'])

    const commit = hub.commitOf('org/model', 'main')!
    expect(await readFile(inCache('refs', 'main'), 'utf8')).toBe(commit)
    const config = `../../blobs/${gitSha1(FILES['config.json'])}`
    expect(await readlink(inCache('snapshots', commit, 'config.json'))).toBe(config)
    expect(await readlink(inCache('snapshots', commit, 'onnx', 'model.onnx'))).toBe(`../../../blobs/${sha256(WEIGHTS)}`)
    expect((await readdir(inCache('blobs'))).sort()).toEqual([gitSha1(FILES['config.json']), sha256(WEIGHTS)].sort())
  })

  test('is there the next time, online with one request, offline with none', async () => {
    await contentOf('org/model', 'onnx/model.onnx')
    hub.seen.length = 0
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx'))).toBe(true)
    expect(hub.seen.map(({ path: url }) => url)).toEqual(['/api/models/org/model/revision/main'])
    hub.seen.length = 0
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', { HF_HUB_OFFLINE: '1' }))).toBe(true)
    const commit = hub.commitOf('org/model', 'main')!
    expect(isWeights(await contentOf(`org/model@${commit}`, 'onnx/model.onnx'))).toBe(true)
    expect(hub.seen).toEqual([])
  })

  test('is told before the first byte and until the last', async () => {
    await contentOf('org/model', 'onnx/model.onnx')
    expect(progress[0]).toEqual({ name: 'org/model/onnx/model.onnx', byteLength: 300_000, receivedBytes: 0 })
    expect(progress.at(-1)).toEqual({ name: 'org/model/onnx/model.onnx', byteLength: 300_000, receivedBytes: 300_000 })
    const received = progress.map(({ receivedBytes }) => receivedBytes)
    expect(received).toEqual([...received].sort((a, b) => a - b))
  })

  test('a revision, a folder of it, and names with a slash or a blank', async () => {
    const [old, new_] = ['1'.repeat(40), '2'.repeat(40)]
    hub.repositories.set('org/two', {
      files: { 'a b/ü#?.json': text('[1]') },
      refs: { main: new_, 'v1.0': old, 'feature/x': old, 'refs/pr/3': old },
    })
    for (const revision of ['v1.0', 'feature%2Fx', 'refs/pr/3', old]) {
      const directory = await open(`org/two@${revision}/a b`)
      expect(directory.commit).toBe(old)
      expect(await readJson(directory, 'ü#?.json')).toEqual([1])
    }
    const refs = path.join(home, 'hub', 'models--org--two', 'refs')
    expect(await readFile(path.join(refs, 'refs', 'pr', '3'), 'utf8')).toBe(old)
    expect((await open('org/two')).commit).toBe(new_)
  })

  test('a new commit of a branch, with the content that stayed taken from the cache', async () => {
    await contentOf('org/model', 'onnx/model.onnx')
    const changed = { ...FILES, 'config.json': text('{"model_type": "gpt2"}') }
    hub.repositories.set('org/model', { files: changed, lfs: ['onnx/model.onnx'], commit: '3'.repeat(40) })
    hub.seen.length = 0
    const directory = await open('org/model')
    await (await directory.open('onnx/model.onnx')).close()
    expect(hub.loaded).toEqual([])
    expect(await readJson(directory, 'config.json')).toEqual({ model_type: 'gpt2' })
    expect(await readFile(inCache('refs', 'main'), 'utf8')).toBe('3'.repeat(40))
  })

  test('a list of many pages', async () => {
    hub.pageSize = 3
    const files = Object.fromEntries(Array.from({ length: 10 }, (_, i) => [`file-${i}`, text(`${i}`)]))
    hub.repositories.set('org/many', { files })
    expect(await (await open('org/many')).list()).toHaveLength(10)
  })

  test('an empty file', async () => {
    hub.repositories.set('org/empty', { files: { empty: new Uint8Array() } })
    expect(await contentOf('org/empty', 'empty')).toEqual(new Uint8Array())
  })

  test('ranges of a large file, of which nothing is kept', async () => {
    const large = noise(3 << 20)
    hub.repositories.set('org/large', {
      files: { 'model.safetensors': large, 'config.json': text('{}') },
      lfs: ['model.safetensors'],
    })
    const directory = await open('org/large', {}, { readsRanges: true })
    const source = await directory.open('model.safetensors')
    expect(await source.read(1_000_000, 10)).toEqual(large.subarray(1_000_000, 1_000_010))
    expect(source.realPath).toBeUndefined()
    await readJson(directory, 'config.json')
    expect(await readdir(path.join(home, 'hub', 'models--org--large', 'blobs'))).toEqual([gitSha1(text('{}'))])
    await contentOf('org/large', 'model.safetensors')
    hub.seen.length = 0
    await contentOf('org/large', 'model.safetensors', {}, { readsRanges: true })
    expect(hub.loaded).toEqual([])
  })

  test('files in place of links where links are not wanted', async () => {
    await contentOf('org/model', 'onnx/model.onnx', { HF_HUB_DISABLE_SYMLINKS: '1' })
    const commit = hub.commitOf('org/model', 'main')!
    expect((await lstat(inCache('snapshots', commit, 'onnx', 'model.onnx'))).isFile()).toBe(true)
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', { HF_HUB_OFFLINE: '1' }))).toBe(true)
  })
})

describe('the token', () => {
  beforeEach(
    () => void hub.repositories.set('org/closed', { files: FILES, lfs: ['onnx/model.onnx'], access: 'private' }),
  )

  test('of HF_TOKEN or of the file goes to the Hub and to no other host', async () => {
    await contentOf('org/closed', 'onnx/model.onnx', { HF_TOKEN: TOKEN })
    await writeFile(path.join(home, 'token'), `${TOKEN}\n`)
    await contentOf('org/closed', 'config.json')
    const bearers = (origin: string) =>
      new Set(hub.seen.filter((seen) => seen.origin === origin).map(({ authorization }) => authorization))
    expect(bearers('hub')).toEqual(new Set([`Bearer ${TOKEN}`]))
    expect(bearers('storage')).toEqual(new Set([undefined]))
  })

  test('is missing, wrong, or of an account without access', async () => {
    expect((await failure(open('org/closed'))).message).toMatch(
      /no such model on the Hub, or a private one.*needs HF_TOKEN/,
    )
    expect((await failure(open('org/closed', { HF_TOKEN: 'hf_old' }))).message).toMatch(/the token is not valid/)
    hub.repositories.set('org/gated', { files: FILES, access: 'gated' })
    const gated = await failure(contentOf('org/gated', 'config.json'))
    expect(gated.message).toMatch(
      /a gated model.*Accept the terms at .*\/org\/gated, make a token at .*settings\/tokens, and set HF_TOKEN/,
    )
    const stranger = await failure(contentOf('org/gated', 'config.json', { HF_TOKEN: STRANGER }))
    expect(stranger.message).toMatch(/the account of the token may not read.*Accept the terms at .*\/org\/gated with/)
    expect(await contentOf('org/gated', 'config.json', { HF_TOKEN: TOKEN })).toEqual(FILES['config.json'])
  })

  test('that is none never appears in a message', async () => {
    const error = await open('org/model', { HF_TOKEN: 'se cret' }).catch((reason) => reason)
    expect(error).toMatchObject({ code: 'CONFIG', where: 'HF_TOKEN' })
    expect(error.message).not.toContain('cret')
  })
})

describe('what is not there', () => {
  test('an unknown id, with what is cached under a similar one', async () => {
    await contentOf('org/model', 'config.json')
    expect((await failure(open('org/modell'))).message).toMatch(
      /org\/modell: no such model on the Hub.*Did you mean org\/model\?/,
    )
    expect((await failure(open('org/modell', { HF_HUB_OFFLINE: '1' }))).message).toMatch(
      /not in the cache, and HF_HUB_OFFLINE is set.*Did you mean org\/model\?/,
    )
  })

  test('a revision, a file', async () => {
    expect((await failure(open('org/model@v9'))).message).toMatch(/org\/model: no revision "v9"/)
    const file = await failure((await open('org/model')).open('confg.json'))
    expect(file.message).toMatch(/no such file in the repository.*Did you mean config.json\?/)
  })

  test('a file that was not loaded, offline', async () => {
    await contentOf('org/model', 'config.json')
    const error = await failure(contentOf('org/model', 'README.md', { HF_HUB_OFFLINE: '1' }))
    expect(error.message).toMatch(/org\/model\/README.md: not in the cache, and HF_HUB_OFFLINE is set/)
    expect((await failure(open('org/new', { HF_HUB_OFFLINE: '1' }))).message).toMatch(
      /revision "main" is not in the cache/,
    )
  })

  test('the Hub: then the cache is used, and that is said', async () => {
    await contentOf('org/model', 'config.json')
    hub.repositories.delete('org/model')
    expect(await contentOf('org/model', 'config.json')).toEqual(FILES['config.json'])
    expect(warnings).toEqual([expect.stringMatching(/no such model.*The copy in the cache is used/)])
    const endpoint = hub.endpoint
    await hub.stop()
    expect(await contentOf('org/model', 'config.json', { HF_ENDPOINT: endpoint })).toEqual(FILES['config.json'])
    expect(warnings[1]).toMatch(/cannot be reached.*The copy in the cache is used/)
    expect((await failure(contentOf('org/model', 'README.md', { HF_ENDPOINT: endpoint }))).message).toMatch(
      /not in the cache, and cannot be reached/,
    )
    expect((await failure(open('org/other', { HF_ENDPOINT: endpoint }))).message).toMatch(/cannot be reached/)
  })

  test('a Hub behind the address', async () => {
    hub.faults.set('revision', { status: 500, times: 1 })
    expect((await open('org/model')).commit).toBe(hub.commitOf('org/model', 'main'))
    hub.faults.set('revision', { status: 503 })
    expect((await failure(open('org/model'))).message).toMatch(/the Hub fails for now; got 503/)
    hub.faults.set('revision', { stallAfter: 1 })
    expect((await failure(open('org/model', {}, { times: { stallMs: 50, retryMs: 1 } }))).message).toMatch(
      /no answer for 0.05 s/,
    )
  })
})

describe('a hostile Hub', () => {
  test.each(['../../evil', 'a/../../evil', '/etc/passwd', 'C:\\evil', 'a\\..\\evil', '.'])(
    'names a file %s',
    async (name) => {
      hub.extraEntries = [{ type: 'file', path: name, size: 1, oid: '0'.repeat(40) }]
      expect((await failure(open('org/model'))).message).toMatch(/leads out of the folder or nowhere/)
      expect(await readdir(home)).toEqual([])
    },
  )

  test.each([{ oid: '../../../evil' }, { lfs: { oid: '../x', size: 1 } }, { size: -1 }])(
    'gives digests and sizes that are none: %o',
    async (wrong) => {
      hub.extraEntries = [{ type: 'file', path: 'x', size: 1, oid: '0'.repeat(40), ...wrong }]
      await expect(open('org/model')).rejects.toMatchObject({ code: 'FORMAT' })
    },
  )

  test('redirects without end', async () => {
    hub.repositories.set('org/model', { files: FILES, lfs: ['config.json'] })
    hub.storage = `${hub.endpoint}/org/model/resolve/main/config.json?`
    expect((await failure(contentOf('org/model', 'config.json'))).message).toMatch(/more than 8 redirects/)
  })
})

describe('a download', () => {
  const file = 'onnx/model.onnx'
  const partials = async () =>
    (await readdir(inCache('blobs')).catch(() => [])).filter((name) => name.endsWith('.incomplete'))

  test('goes on where the connection broke', async () => {
    hub.faults.set(file, { breakAfter: 100_000, times: 2 })
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    expect(hub.seen.filter(({ origin }) => origin === 'storage').map(({ range }) => range)).toEqual([
      undefined,
      'bytes=100000-',
      'bytes=200000-',
    ])
    expect(await partials()).toEqual([])
  })

  test('goes on where an earlier one ended, and says so', async () => {
    hub.faults.set(file, { breakAfter: 100_000, times: 1 })
    const control = new AbortController()
    const first = contentOf(
      'org/model',
      file,
      {},
      {
        signal: control.signal,
        onDownload: ({ receivedBytes }) =>
          receivedBytes >= 50_000 && control.abort(new DOMException('stopped', 'AbortError')),
      },
    )
    await expect(first).rejects.toMatchObject({ name: 'AbortError' })
    expect(await partials()).toEqual([`${sha256(WEIGHTS)}.lowrank.incomplete`])
    hub.faults.clear()
    hub.seen.length = 0
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    expect(progress[0].receivedBytes).toBeGreaterThanOrEqual(50_000)
    expect(hub.seen.at(-1)!.range).toBe(`bytes=${progress[0].receivedBytes}-`)
    expect(await partials()).toEqual([])
  })

  test('takes up what a process left that was killed', async () => {
    await mkdir(inCache('blobs'), { recursive: true })
    const dead = spawn(process.execPath, ['-e', ''])
    await new Promise((resolve) => dead.once('exit', resolve))
    const name = `${sha256(WEIGHTS)}.lowrank-${hostMark()}-${dead.pid}-00000000.incomplete`
    await writeFile(inCache('blobs', name), WEIGHTS.subarray(0, 1234))
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    expect(hub.seen.at(-1)!.range).toBe('bytes=1234-')
  })

  test('waits while another process brings the file', async () => {
    await mkdir(inCache('blobs'), { recursive: true })
    const other = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60_000)'])
    const part = inCache('blobs', `${sha256(WEIGHTS)}.lowrank-${hostMark()}-${other.pid}-00000000.incomplete`)
    await writeFile(part, WEIGHTS.subarray(0, 1234))
    const waiting = contentOf('org/model', file)
    while (progress.length === 0) await new Promise((resolve) => setTimeout(resolve, 10))
    await writeFile(part, WEIGHTS)
    await rename(part, blob(WEIGHTS))
    expect(isWeights(await waiting)).toBe(true)
    other.kill()
    expect(progress[0].receivedBytes).toBe(1234)
    expect(hub.loaded).toEqual([])
  })

  test('starts anew when what an earlier one left is damaged, or the server has no ranges', async () => {
    await mkdir(inCache('blobs'), { recursive: true })
    const left = path.join(inCache('blobs'), `${sha256(WEIGHTS)}.lowrank.incomplete`)
    await writeFile(left, new Uint8Array(1000))
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    await rm(inCache(), { recursive: true })
    await mkdir(inCache('blobs'), { recursive: true })
    await writeFile(left, WEIGHTS.subarray(0, 1000))
    hub.faults.set(file, { ignoresRange: true })
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    await rm(inCache(), { recursive: true })
    await mkdir(inCache('blobs'), { recursive: true })
    await writeFile(left, new Uint8Array(400_000))
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
  })

  test('fails when nothing more comes, keeping what came', async () => {
    await mkdir(inCache('blobs'), { recursive: true })
    await writeFile(inCache('blobs', `${sha256(WEIGHTS)}.lowrank.incomplete`), WEIGHTS.subarray(0, 1000))
    hub.faults.set(file, { stallAfter: 0 })
    const error = await failure(contentOf('org/model', file, {}, { times: { stallMs: 60, retryMs: 1 } }))
    expect(error.message).toMatch(/the download broke off at 1000 of 300000 bytes; got no answer for 0.06 s/)
    expect(await partials()).toEqual([`${sha256(WEIGHTS)}.lowrank.incomplete`])
    expect(await readdir(inCache())).not.toContain('refs')
  })

  test.each([
    ['other bytes', noise(300_000).reverse()],
    ['fewer', WEIGHTS.subarray(0, 100)],
    ['more', noise(300_001)],
  ])('is dropped when %s come', async (_, content) => {
    hub.faults.set(file, { content })
    const error = await failure(contentOf('org/model', file))
    expect(error.message).toMatch(
      /org\/model\/onnx\/model.onnx: came damaged, and was dropped; expected 300000 bytes with SHA-256/,
    )
    expect(await readdir(inCache('blobs'))).toEqual([])
  })

  test('checks small files too', async () => {
    hub.faults.set('config.json', { content: text('{"model_type": "lloma"}') })
    expect((await failure(contentOf('org/model', 'config.json'))).message).toMatch(/came damaged.*git's SHA-1/)
  })

  test('is refused once and tried again when that passes', async () => {
    hub.faults.set(file, { status: 429, times: 2 })
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    hub.faults.set('README.md', { status: 410 })
    expect((await failure(contentOf('org/model', 'README.md'))).message).toMatch(
      /the Hub refuses; expected 200, got 410/,
    )
  })

  test('of one file by two callers at once is one', async () => {
    const directory = await open('org/model')
    const [one, two] = await Promise.all([directory.open(file), directory.open(file)])
    expect(isWeights(await readAll(one)) && isWeights(await readAll(two))).toBe(true)
    await Promise.all([one.close(), two.close()])
    expect(hub.seen.filter(({ origin }) => origin === 'storage')).toHaveLength(1)
  })

  test('replaces a file that is cut in the cache', async () => {
    await contentOf('org/model', file)
    await writeFile(blob(WEIGHTS), WEIGHTS.subarray(0, 7))
    expect((await failure(contentOf('org/model', file, { HF_HUB_OFFLINE: '1' }))).message).toMatch(
      /damaged in the cache/,
    )
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    expect((await stat(blob(WEIGHTS))).size).toBe(300_000)
  })

  /** As the names of parts have it. */
  function hostMark(): string {
    return createHash('sha256').update(hostname()).digest('hex').slice(0, 8)
  }
})
