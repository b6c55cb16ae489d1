// lowrank serve as a process: it answers over HTTP, finishes running answers after a signal, and refuses wrong options.

import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { get, type IncomingMessage } from 'node:http'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { lowrank, MODEL, scratchFolder, start } from './lowrank.js'

/** Waits until the address is printed. */
function addressOf(child: ChildProcess): Promise<string> {
  return new Promise<string>((resolve, reject) => {
    let text = ''
    child.stderr!.on('data', (piece) => {
      text += piece
      const [found] = /http:\/\/127\.0\.0\.1:\d+/.exec(text) ?? []
      if (found !== undefined) resolve(found)
    })
    child.on('close', () => reject(new Error(text)))
  })
}

it('answers, and after SIGTERM finishes what has begun and ends with 0', async () => {
  const { child, done } = start(['serve', MODEL, '--adapter', 'peft=tests/golden/peft/f32', '--port', '0'])
  const url = await addressOf(child)
  const models = await (await fetch(`${url}/v1/models`)).json()
  expect(models.data.map(({ id }: { id: string }) => id)).toEqual(['union-3m', 'peft'])
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'peft', prompt: 'And the people', max_tokens: 120, stream: true }),
  })
  child.kill('SIGTERM')
  const text = await response.text()
  expect(text).toMatch(/"finish_reason":"(length|stop)"/)
  expect(text.trimEnd()).toMatch(/data: \[DONE\]$/)
  const { code, stderr } = await done
  expect([code, stderr]).toEqual([0, expect.stringContaining('serves union-3m, peft')])
  expect(stderr).toContain(`curl ${url}/v1/completions`)
})

it('takes options from a file, keys of several kinds, and logs requests', async () => {
  const folder = scratchFolder()
  const config = join(folder, 'serve.yaml')
  const keys = join(folder, 'keys')
  writeFileSync(keys, '# who calls\nalice=alice-secret priority=2\nroot=root-secret admin\n')
  const lines = [`model: ${MODEL}`, 'adapter: { peft: tests/golden/peft/f32 }', `keyFile: ${keys}`, 'log: json']
  writeFileSync(
    config,
    [
      ...[...lines, 'servedModelName: [gpt-4o-mini]', 'allow-loading: tests/golden/peft', 'port: 1'],
      ...[`train: ${folder}/training`, 'max-file-bytes: 4'],
      'graderModels: { one: http://127.0.0.1:1/v1, two: http://127.0.0.1:1/v1 }',
    ].join('\n'),
  )
  const template = join(folder, 'template.jinja')
  writeFileSync(template, '{% for m in messages %}{{ m.content }}{% endfor %}')
  const more = ['--chat-template', template, '--allowed-host', 'lowrank.example']
  const { child, done } = start(['serve', '--config', config, '--port', '0', ...more])
  const url = await addressOf(child)
  const ask = (key: string, path: string, body?: object) => {
    const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' }
    return fetch(`${url}${path}`, body ? { method: 'POST', headers, body: JSON.stringify(body) } : { headers })
  }
  await expect.poll(async () => (await fetch(`${url}/ready`)).status).toBe(200)
  expect((await ask('none', '/v1/models')).status).toBe(401)
  const load = { lora_name: 'b', lora_path: 'bf16' }
  expect((await ask('alice-secret', '/v1/load_lora_adapter', load)).status).toBe(403)
  expect((await ask('root-secret', '/v1/load_lora_adapter', load)).status).toBe(200)
  expect(
    (await ask('alice-secret', '/v1/completions', { model: 'gpt-4o-mini', prompt: 'a', max_tokens: 1 })).status,
  ).toBe(200)
  const chat = { model: 'gpt-4o-mini', messages: [{ role: 'user', content: 'a' }], max_tokens: 1 }
  expect((await ask('alice-secret', '/v1/chat/completions', chat)).status).toBe(200)
  const form = new FormData()
  form.set('purpose', 'fine-tune')
  form.set('file', new File(['more than 4'], 'a.jsonl'))
  const headers = { authorization: 'Bearer root-secret' }
  const upload = await fetch(`${url}/v1/files`, { method: 'POST', headers, body: form })
  expect([upload.status, await upload.text()]).toEqual([413, expect.stringContaining('larger than 4 bytes')])
  const statusAt = (host: string) =>
    new Promise((resolve) => get(`${url}/health`, { headers: { host } }, ({ statusCode }) => resolve(statusCode)))
  const statuses = ['lowrank.example', new URL(url).host, 'other.example'].map(statusAt)
  expect(await Promise.all(statuses)).toEqual([200, 200, 403])
  child.kill('SIGTERM')
  const { code, stdout } = await done
  const entries = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect([code, entries.length]).toEqual([0, expect.any(Number)])
  const completed = entries.findLast(({ route }) => route === '/v1/completions')
  expect(completed).toMatchObject({ key: 'alice', model: 'gpt-4o-mini', status: 200 })
  expect(stdout).not.toMatch(/secret/)
  const wrong = await lowrankHere('serve', MODEL, '--api-key', 'a b')
  expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringMatching(/--api-key: not a key: write \[NAME=\]KEY/)])
})

it('takes its key from the environment, has no page if it is told so, and ends at once by a second signal', async () => {
  const config = join(scratchFolder(), 'serve.json')
  writeFileSync(config, JSON.stringify({ model: MODEL, port: 0, noPage: true, log: 'text', drainSeconds: 600 }))
  process.env.LOWRANK_API_KEY = 'of-the-environment'
  const { child, done } = start(['serve', '--config', config])
  delete process.env.LOWRANK_API_KEY
  const url = await addressOf(child)
  await expect.poll(async () => (await fetch(`${url}/ready`)).status).toBe(200)
  const accept = 'text/html'
  const headers = { accept, authorization: 'Bearer of-the-environment', 'content-type': 'application/json' }
  const statuses = ['/v1/models', '/'].map(async (path) => [
    (await fetch(url + path, { headers: { accept } })).status,
    (await fetch(url + path, { headers })).status,
  ])
  expect(await Promise.all(statuses)).toEqual([
    [401, 200],
    [404, 404],
  ])
  // A body of which half is missing, and an answer that takes longer than the test may.
  const body = JSON.stringify({ prompt: 'And', max_tokens: 240, n: 16, temperature: 1, ignore_eos: true })
  const answer = fetch(`${url}/v1/completions`, { method: 'POST', headers, body }).catch(() => 'cut')
  await expect
    .poll(async () => (await fetch(`${url}/metrics`, { headers })).text())
    .toMatch(/num_requests_running [^0]/)
  child.kill('SIGTERM')
  await new Promise((resolve) => child.stderr!.once('data', resolve))
  child.kill('SIGTERM')
  const { code, stdout } = await done
  expect([code, await answer]).toEqual([143, 'cut'])
  expect(stdout).toMatch(/^\S+ 401 GET \/v1\/models - - \d+ ms \S+$/m)
})

it('ends with 0 also if SIGTERM comes with the address', async () => {
  const { child, done } = start(['serve', MODEL, '--port', '0'])
  child.stderr!.once('data', () => child.kill('SIGTERM'))
  expect(await done).toMatchObject({
    code: 0,
    stderr: expect.stringMatching(/serves union-3m.*Answering what has begun/s),
  })
})

/** Starts a server with a file of 5 MB, and stops it while a caller reads nothing of this file. */
async function stoppedWhile(drainSeconds: number, then: (caller: IncomingMessage, child: ChildProcess) => void) {
  const folder = scratchFolder()
  const place = join(folder, 'files', 'file-aaaaaaaaaaaaaaaaaaaaaaaa')
  mkdirSync(place, { recursive: true })
  const content = `{"text":"${'x'.repeat(5 << 20)}"}`
  const about = {
    id: 'file-aaaaaaaaaaaaaaaaaaaaaaaa',
    owner: 'admin',
    created_at: 1_700_000_000,
    bytes: content.length,
    filename: 'x',
  }
  writeFileSync(join(place, 'record.json'), JSON.stringify({ ...about, purpose: 'fine-tune' }))
  writeFileSync(join(place, 'content.jsonl'), content)
  const options = ['--port', '0', '--train', folder, '--admin-key', 'x', '--drain-seconds', String(drainSeconds)]
  const { child, done } = start(['serve', MODEL, ...options])
  const url = await addressOf(child)
  const headers = { authorization: 'Bearer x' }
  const caller = await new Promise<IncomingMessage>((resolve) => {
    get(`${url}/v1/files/file-aaaaaaaaaaaaaaaaaaaaaaaa/content`, { headers }, resolve)
  })
  caller.on('error', () => {})
  child.stderr!.on('data', (text) => String(text).includes('Answering') && then(caller, child))
  child.kill('SIGTERM')
  return done
}

it.each<[string, number, number, Parameters<typeof stoppedWhile>[1]]>([
  ['0 if a caller that read nothing reads on', 600, 0, (caller) => void caller.resume()],
  ['0 if a caller that read nothing leaves', 600, 0, (caller) => void caller.destroy()],
  ['143 if --drain-seconds cut its answer off', 1, 143, () => {}],
  ['143 if a second signal did', 600, 143, (_, child) => void child.kill('SIGTERM')],
])('ends after SIGTERM with %s', async (_, drainSeconds, expected, then) => {
  const { code, stderr } = await stoppedWhile(drainSeconds, then)
  expect(code, stderr).toBe(expected)
})

it('ends with 143 if SIGTERM comes while it loads', async () => {
  const { child, done } = start(['serve', MODEL, '--port', '0'])
  await new Promise((resolve) => setTimeout(resolve, 100))
  child.kill('SIGTERM')
  expect((await done).code).toBe(143)
})

it('refuses an empty name of an adapter, and one that the last part of another source takes', async () => {
  const { code, stderr } = await lowrankHere('serve', MODEL, '--adapter', '=tests/golden/peft/f32')
  expect([code, stderr]).toEqual([2, expect.stringMatching(/write NAME=SOURCE/)])
  const twice = await lowrankHere('serve', MODEL, '--adapter', 'tests/golden/peft/f32', '--adapter', 'elsewhere/f32')
  expect([twice.code, twice.stderr]).toEqual([2, expect.stringMatching(/two are called f32: write NAME=SOURCE/)])
})

it.each([
  ['a port that does not exist', ['--port', '99999'], 2, /--port: .*\[0, 65535\], got 99999/],
  ['a host that is not found', ['--port', '0', '--host', 'nowhere.invalid'], 2, /--host: .*nowhere\.invalid/],
])('refuses %s', async (_, args, code, message) => {
  const outcome = await lowrankHere('serve', MODEL, ...args)
  expect([outcome.code, outcome.stderr]).toEqual([code, expect.stringMatching(message)])
})

it('takes the base from the adapter, and names an adapter that is not there', async () => {
  const folder = scratchFolder()
  cpSync('tests/golden/peft/f32', folder, { recursive: true })
  const file = join(folder, 'adapter_config.json')
  const config = JSON.parse(readFileSync(file, 'utf8'))
  writeFileSync(file, JSON.stringify({ ...config, base_model_name_or_path: MODEL }))
  const { child, done } = start(['serve', '--adapter', `sea=${folder}`, '--port', '0'])
  await addressOf(child)
  child.kill('SIGTERM')
  expect(await done).toMatchObject({ code: 0, stderr: expect.stringMatching(/The base is .*serves union-3m, sea/s) })
  const missing = await lowrankHere('serve', '--adapter', './nowhere/sea', '--port', '0')
  expect([missing.code, missing.stderr]).toEqual([1, expect.stringMatching(/nowhere\/sea: no such file or folder/)])
  const none = await lowrankHere('serve', '--port', '0')
  expect([none.code, none.stderr]).toEqual([2, expect.stringMatching(/--model .* is missing/)])
})

it('refuses a port that another program uses', async () => {
  const other = createServer().listen(0, '127.0.0.1')
  await once(other, 'listening')
  const { port } = other.address() as AddressInfo
  // The port is checked before the model is loaded: this model does not exist.
  const { code, stderr } = await lowrankHere('serve', './nowhere', '--port', `${port}`)
  other.close()
  expect([code, stderr]).toEqual([2, expect.stringMatching(/--port: used by another program.*0 takes a free one/)])
})

it('reads a prompt of 20 kB from the command line', async () => {
  const { code, stderr } = await lowrank('generate', MODEL, '--prompt', 'sea '.repeat(5000))
  expect([code, stderr]).toEqual([
    1,
    expect.stringMatching(/This model.s maximum context length is 256 tokens.*got 10002 in the prompt/),
  ])
})

it('takes names with other servers from a file and from options', async () => {
  const folder = scratchFolder()
  const config = join(folder, 'serve.yaml')
  const target = '{ model: peft, upstream: { url: http://127.0.0.1:1/v1, when: "2020-01-01" } }'
  const lines = ['adapter: { peft: tests/golden/peft/f32 }', `alias: { "ft:gpt-4o:acme::a": ${target}, short: peft }`]
  writeFileSync(config, [`model: ${MODEL}`, ...lines, 'fallback: http://127.0.0.1:1/v1', 'port: 0'].join('\n'))
  const { child, done } = start(['serve', '--config', config])
  const url = await addressOf(child)
  const { data } = await (await fetch(`${url}/v1/aliases`)).json()
  expect(data.map(({ name, model }: Record<string, string>) => [name, model])).toEqual([
    ['ft:gpt-4o:acme::a', 'peft'],
    ['short', 'peft'],
  ])
  const ask = async (model: string) => {
    const body = JSON.stringify({ model, prompt: 'And', max_tokens: 1 })
    const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body }
    return (await fetch(`${url}/v1/completions`, init)).status
  }
  expect(await Promise.all(['ft:gpt-4o:acme::a', 'short', 'gpt-9'].map(ask))).toEqual([200, 200, 502])
  child.kill('SIGTERM')
  expect((await done).code).toBe(0)
  const { code, stderr } = await lowrankHere('serve', MODEL, '--upstream', 'http://127.0.0.1:1/v1')
  expect([code, stderr]).toEqual([2, expect.stringContaining('--upstream needs --moved DIR')])
})
