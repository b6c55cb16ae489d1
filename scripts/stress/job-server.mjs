// `lowrank serve --train FOLDER` in a process of its own, and what its callers ask it.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { root } from './commands.mjs'

const ENDS = ['succeeded', 'failed', 'cancelled']

export class JobServer {
  #process
  #url = ''

  constructor(folder, { model = 'models/union-3m', options = [] } = {}) {
    this.folder = folder
    this.model = model
    this.options = options
  }

  get pid() {
    return this.#process.pid
  }

  /** Resolves when the server answers. */
  async start() {
    const args = [
      'serve',
      this.model,
      '--port',
      '0',
      '--train',
      this.folder,
      '--quiet',
      '--log',
      'off',
      ...this.options,
    ]
    const child = spawn(process.execPath, [join(root, 'dist/app/cli/main.js'), ...args], {
      cwd: root,
      env: { ...process.env, LOWRANK_ADMIN_KEY: 'root' },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    this.#process = child
    let told = ''
    for await (const text of child.stderr.iterator({ destroyOnReturn: false })) {
      told += text
      const [, url] = /(http:\/\/[\d.:]+).* serves /s.exec(told) ?? []
      if (url === undefined) continue
      this.#url = `${url}/v1`
      child.stderr.resume()
      return
    }
    throw new Error(`the server ended: ${told}`)
  }

  /** Ends the server with a signal, and resolves when it is gone. */
  async end(signal = 'SIGTERM') {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const exit = once(this.#process, 'exit')
    this.#process.kill(signal)
    await exit
  }

  /** Processes of its jobs. */
  trainers() {
    try {
      const found = execFileSync('pgrep', ['-f', `(check|train) ${this.folder}/jobs/`], { encoding: 'utf8' })
      return found.trim().split('\n').map(Number)
    } catch {
      return []
    }
  }

  request(path, body, method = body === undefined ? 'GET' : 'POST') {
    const isForm = body instanceof FormData
    return fetch(this.#url + path, {
      method,
      headers: { authorization: 'Bearer root', ...(body && !isForm && { 'content-type': 'application/json' }) },
      ...(body && { body: isForm ? body : JSON.stringify(body) }),
    })
  }

  /** Asks a route: with a body it is a POST. Throws for answers that are errors. */
  async call(path, ...asked) {
    const answer = await this.request(path, ...asked)
    const value = await answer.json()
    if (!answer.ok) throw Object.assign(new Error(`${path}: ${JSON.stringify(value)}`), { status: answer.status })
    return value
  }

  /** All entries of a list, page by page. */
  async all(path) {
    const entries = []
    for (;;) {
      const after = entries.length === 0 ? '' : `&after=${entries.at(-1).id}`
      const page = await this.call(`${path}?limit=100${after}`)
      entries.push(...page.data)
      if (!page.has_more) return entries
    }
  }

  async upload(rows) {
    const form = new FormData()
    form.set('purpose', 'fine-tune')
    form.set('file', new File([rows.map((row) => `${JSON.stringify(row)}\n`).join('')], 'rows.jsonl'))
    return (await this.call('/files', form)).id
  }

  /** @returns the id of the job */
  async create(training_file, options) {
    const [model] = (await this.call('/models')).data
    return (await this.call('/fine_tuning/jobs', { model: model.id, training_file, ...options })).id
  }

  async ended(id) {
    for (;;) {
      const job = await this.call(`/fine_tuning/jobs/${id}`)
      if (ENDS.includes(job.status)) return job
      await wait(100)
    }
  }

  /** Runs a job's own command, and returns the folder of its result. */
  repeat({ lowrank }, out) {
    const args = lowrank.command.replace('DIR', out).split(' ').slice(1)
    execFileSync(process.execPath, [join(root, 'dist/app/cli/main.js'), ...args], { cwd: root, stdio: 'pipe' })
    return out
  }

  runOf(id) {
    return join(this.folder, 'jobs', id, 'run')
  }
}
