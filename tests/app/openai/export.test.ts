import { readFileSync, rmSync, statSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { azure } from '../../../src/app/openai/azure.js'
import { exportAll } from '../../../src/app/openai/node/export.js'
import { openai } from '../../../src/app/openai/openai.js'
import { ProviderServer } from './provider-server.js'

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

const run = () => exportAll({ out: dir, provider: openai, environment: server.environment })
const linesOf = (place: string) =>
  readFileSync(join(dir, place), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))

describe('lowrank openai export', () => {
  it('takes everything home, page by page, with GET alone', async () => {
    const manifest = await run()
    expect(manifest.lists).toEqual({
      ...{ jobs: 1, events: 3, checkpoints: 1, files: 3, batches: 0, completions: 7, messages: 7, models: 1 },
      ...{ evals: 1, runs: 1, 'output-items': 3 },
    })
    expect(manifest.missing).toEqual([])
    expect(manifest.seen).toMatchObject([{ organization: 'org-acme', project: 'proj_shop' }])
    expect(linesOf('lists/completions.jsonl').map(({ id }) => id)).toEqual(server.completions.map(({ id }) => id))
    expect(readFileSync(join(dir, 'files/file-train.jsonl'), 'utf8')).toBe(server.files.get('file-train')!.content)
    expect(readFileSync(join(dir, 'files/file-result.csv'), 'utf8')).toContain('train_loss')
    expect([...new Set(server.asked.map(({ method }) => method))]).toEqual(['GET'])
    expect(readFileSync(join(dir, 'index.html'), 'utf8')).toContain('proj_shop')
  })

  it('keeps the folder private, and the key out of it', async () => {
    await run()
    expect(statSync(dir).mode & 0o777).toBe(0o700)
    for (const name of ['manifest.json', 'index.html'])
      expect(readFileSync(join(dir, name), 'utf8')).not.toContain('sk-secret')
  })

  it('fetches only what is new when it runs again, and removes nothing that is gone there', async () => {
    await run()
    server.completions = server.completions.slice(2)
    server.files.delete('file-train')
    server.asked.length = 0
    const again = await run()
    expect(again.lists.completions).toBe(7)
    expect(again.missing).toEqual([])
    expect(readFileSync(join(dir, 'files/file-train.jsonl'), 'utf8')).not.toBe('')
    expect(server.asked.filter(({ path }) => path.includes('/content') || path.includes('/messages'))).toEqual([])
  })

  it('waits as Retry-After says, and fetches again what broke off or came short', async () => {
    server.faults.set('/fine_tuning/jobs', [
      { status: 429, headers: { 'retry-after-ms': '30' }, body: { error: { message: 'slow down' } } },
      { status: 503, headers: { 'retry-after': '0' } },
      'hang up',
    ])
    const content = server.files.get('file-train')!.content
    server.faults.set('/files/file-train/content', [
      { body: content, headers: { 'content-length': String(content.length) }, cut: 50 },
      { body: content.slice(0, 90) },
    ])
    const manifest = await run()
    expect(manifest.missing).toEqual([])
    expect(readFileSync(join(dir, 'files/file-train.jsonl'), 'utf8')).toBe(content)
    expect(server.asked.filter(({ path }) => path.startsWith('/fine_tuning/jobs?'))).toHaveLength(4)
  })

  it('names what cannot be read, and goes on', async () => {
    server.gone.add('/evals')
    server.files.delete('file-valid')
    server.faults.set('/batches', [{ status: 403, body: { error: { message: 'no permission' } } }])
    const { missing, lists } = await run()
    expect(Object.fromEntries(missing.map(({ path, what }) => [path, what]))).toMatchObject({
      '/evals': expect.stringContaining('the route is gone'),
      '/files/file-valid/content': expect.stringContaining('expired or was deleted'),
      '/batches': expect.stringContaining('use a key of its project'),
    })
    expect(missing).toHaveLength(3)
    expect(lists.jobs).toBe(1)
  })

  it('goes on with a list after a stop', async () => {
    server.faults.set('/chat/completions', [
      { body: { object: 'list', data: server.completions.slice(0, 3), has_more: true } },
    ])
    const stop = new AbortController()
    const first = exportAll({
      ...{ out: dir, provider: openai, environment: server.environment, signal: stop.signal },
    })
    const isAsked = () => server.asked.some(({ path }) => path.includes('after=chatcmpl-202'))
    server.faults.set('/models', [{ status: 429, headers: { 'retry-after': '600' } }])
    while (!isAsked()) await new Promise((resolve) => setTimeout(resolve, 2))
    stop.abort()
    await expect(first).rejects.toThrow(/abort/i)
    server.faults.clear()
    server.asked.length = 0
    const { lists } = await run()
    expect(lists.completions).toBe(7)
    const asked = server.asked.filter(({ path }) => path.startsWith('/chat/completions?'))
    expect(asked[0].path).toContain('after=chatcmpl-20')
  })

  it('lets no other process into the folder', async () => {
    server.faults.set('/models', [{ status: 429, headers: { 'retry-after-ms': '200' } }])
    const first = run()
    while (server.asked.length === 0) await new Promise((resolve) => setTimeout(resolve, 2))
    await expect(run()).rejects.toThrow('is writing here')
    await first
  })

  it('asks Azure below a resource, with its header for keys', async () => {
    const environment = { AZURE_OPENAI_ENDPOINT: server.url.replace('/v1', ''), AZURE_OPENAI_API_KEY: 'azure-secret' }
    const { lists, missing } = await exportAll({ out: dir, provider: azure, environment })
    expect([lists.jobs, lists.completions, missing]).toEqual([1, 7, []])
    for (const { headers } of server.asked)
      expect([headers['api-key'], headers.authorization]).toEqual(['azure-secret', undefined])
  })

  it('keeps the data of another provider out of the folder', async () => {
    await run()
    const environment = { AZURE_OPENAI_ENDPOINT: server.url, AZURE_OPENAI_API_KEY: 'azure-secret' }
    await expect(exportAll({ out: dir, provider: azure, environment })).rejects.toThrow('has data of openai')
  })

  it('follows a redirect of a file to another server without the key', async () => {
    const other = await ProviderServer.open()
    const to = `${other.url}/files/file-train/content`
    server.faults.set('/files/file-train/content', [{ status: 302, headers: { location: to } }])
    expect((await run()).missing).toEqual([])
    expect(other.asked.map(({ headers }) => headers.authorization)).toEqual([undefined])
    await other.close()
  })
})
