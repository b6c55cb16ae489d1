// lowrank jobs: the fine-tuning jobs of a server, over the routes that every client uses.

import { messageOf, RuntimeError } from '../../../core/base/errors.js'
import { choice, defineCommand, text, toggle, UsageError } from '../options.js'
import { showCurve } from '../show/curve.js'
import { interruptible } from '../show/interrupt.js'
import { colors, print, printable, printDocument, say, table } from '../show/terminal.js'

interface Job {
  readonly id: string
  readonly status: string
  readonly model: string
  readonly created_at: number
  readonly fine_tuned_model: string | null
  readonly error: { readonly message: string } | null
}

interface JobEvent {
  readonly id: string
  readonly created_at: number
  readonly level: string
  readonly message: string
  readonly data: { readonly step: number; readonly total_steps?: number; readonly train_loss: number } | null
}

const POLL_MS = 1000

export const jobs = defineCommand({
  name: 'jobs',
  summary: 'list, watch and end the fine-tuning jobs of a server',
  about: [
    'Asks a server that runs with lowrank serve --train. Jobs are created by OpenAI’s clients: see docs/openai-fine-tuning.md.',
    'list shows all of them. watch follows one until it ends, logs prints its events, and cancel, pause and resume do what they say.',
  ].join('\n'),
  examples: [],
  subject: ['action', 'id'],
  options: {
    action: choice(['list', 'watch', 'logs', 'cancel', 'pause', 'resume'], 'what to do', 'list'),
    id: text('ID', 'the job, ftjob-…'),
    url: text('URL', 'the server’s address, up to /v1', 'http://127.0.0.1:8000/v1'),
    apiKey: text('KEY', 'a key of the server; also LOWRANK_API_KEY'),
    json: toggle('print one JSON document on stdout'),
  },
  async run({ action, id, url, apiKey = process.env.LOWRANK_API_KEY, json }) {
    const ask = (path: string, method = 'GET') => askServer(`${url}/fine_tuning/jobs${path}`, method, apiKey)
    if (action === 'list') {
      const found = (await all(ask, '')) as Job[]
      if (json) printDocument({ jobs: found })
      else if (found.length === 0) say('There are no jobs.')
      else print(table([['job', 'status', 'model', 'created'], ...found.map(rowOf)]))
      return 0
    }
    if (id === undefined) throw new UsageError(`--id ID is missing: lowrank jobs ${action} ftjob-…`)
    const place = `/${encodeURIComponent(id)}`
    if (action === 'logs') {
      const events = ((await all(ask, `${place}/events`)) as JobEvent[]).reverse()
      if (json) printDocument({ events })
      else for (const event of events) print(printable(`${timeOf(event.created_at)} ${event.level} ${event.message}`))
      return 0
    }
    const job = action === 'watch' ? await watch(ask, place) : await ask(`${place}/${action}`, 'POST')
    const { status, fine_tuned_model, error } = job as Job
    if (json) printDocument({ job })
    const result = fine_tuned_model ?? error?.message
    say(`${id}: ${colors.bold(status)}${result === undefined ? '' : `, ${printable(result)}`}`)
    return status === 'failed' ? 1 : 0
  },
})

const timeOf = (seconds: number) => new Date(seconds * 1000).toISOString().slice(0, 19)

function rowOf({ id, status, model, fine_tuned_model, created_at }: Job): string[] {
  return [id, status, fine_tuned_model ?? model, timeOf(created_at)].map(printable)
}

type Ask = (path: string, method?: string) => Promise<unknown>

async function askServer(url: string, method: string, key: string | undefined): Promise<unknown> {
  const headers = new Headers(key === undefined ? [] : [['authorization', `Bearer ${key}`]])
  const fail = (got: string, cause?: unknown) =>
    new RuntimeError({ where: url, what: 'the server does not answer this', got, cause })
  const answer = await fetch(url, { method, headers, redirect: 'error' }).catch((cause) => {
    throw fail(messageOf(cause.cause ?? cause), cause)
  })
  const value = (await answer.json().catch(() => undefined)) as { error?: { message?: string } } | undefined
  if (answer.ok) return value
  throw fail(value?.error?.message ?? `status ${answer.status}`)
}

async function all(ask: Ask, path: string): Promise<{ readonly id: string }[]> {
  const entries: { readonly id: string }[] = []
  for (;;) {
    const after = entries.length === 0 ? '' : `&after=${entries.at(-1)!.id}`
    const page = (await ask(`${path}?limit=100${after}`)) as { data: { id: string }[]; has_more: boolean }
    entries.push(...page.data)
    if (!page.has_more) return entries
  }
}

/** Shows steps, and other events as they come, until the job ends or the user has seen enough. */
async function watch(ask: Ask, place: string): Promise<unknown> {
  const seen = new Set<string>()
  const losses: number[] = []
  const isOver = ({ status }: Job) => ['succeeded', 'failed', 'cancelled'].includes(status)
  const watched = await interruptible('The job goes on.', async (signal, progress) => {
    for (;;) {
      const job = (await ask(place)) as Job
      const { data } = (await ask(`${place}/events?limit=100`)) as { data: JobEvent[] }
      for (const { id, message, data: step } of data.toReversed()) {
        if (seen.has(id)) continue
        seen.add(id)
        if (step === null) say(printable(message))
        else {
          losses.push(step.train_loss)
          progress.update(step.step, step.total_steps ?? step.step, `  loss ${step.train_loss.toFixed(3)}`)
        }
      }
      if (isOver(job) || signal.aborted) return job
      await new Promise((resolve) => setTimeout(resolve, POLL_MS))
    }
  })
  showCurve(losses)
  return watched
}
