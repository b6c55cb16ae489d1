// The part of the page that trains: records become a job, which is watched, compared with its base and promoted.

import { button, byId, inputOf, make } from '../src/elements.js'
import { request } from './requests.js'

interface Job {
  readonly id: string
  readonly status: string
  readonly model: string
  readonly fine_tuned_model: string | null
  readonly finished_at: number | null
  readonly error: { readonly message: string } | null
}

interface JobEvent {
  readonly id: string
  readonly level: string
  readonly message: string
  readonly data: { readonly step: number; readonly total_steps?: number; readonly train_loss: number } | null
}

interface Checkpoint {
  readonly step_number: number
  readonly fine_tuned_model_checkpoint: string
}

interface Card {
  readonly facts: HTMLElement
  readonly actions: HTMLElement
  readonly events: Map<string, JobEvent>
  /** What each checkpoint says after the prompt of the first record. */
  readonly samples: Map<string, string>
  readonly prompt: string | undefined
  isOver: boolean
}

type Row = Readonly<Record<string, unknown>>

const EXAMPLES = 3
const SHOWN = 300
const POLL_MS = 1000
const [WIDTH, HEIGHT] = [300, 60]
const JOBS = '/v1/fine_tuning/jobs'
const METHODS = {
  label: 'kto',
  chosen: 'dpo',
  preferred_output: 'dpo',
  messages: 'supervised',
  completion: 'supervised',
}

const method = byId<HTMLSelectElement>('train-method')
const grader = inputOf('grader')
const files = inputOf('train-file')
const cards = new Map<string, Card>()
let first: Row | undefined

async function ask<Answer>(path: string, body?: object): Promise<Answer> {
  const response = await request(path, body)
  const value = await response.json()
  if (!response.ok) throw new Error(value.error.message)
  return value
}

function say(text: string): void {
  byId('train-state').textContent = text
}

/** Does what a button asks for, and says what went wrong. */
function attempt(work: () => Promise<unknown>): void {
  work().catch((error: Error) => say(error.message))
}

/** Shows the first records, and chooses the method that their fields fit. */
async function showExamples(): Promise<void> {
  const lines = ((await files.files?.[0]?.slice(0, 1 << 20).text()) ?? '')
    .split('\n')
    .filter((line) => line.trim() !== '')
  byId('examples').replaceChildren(
    ...lines.slice(0, EXAMPLES).map((line) => make('li', { class: 'soft' }, line.slice(0, SHOWN))),
  )
  first = undefined
  try {
    first = JSON.parse(lines[0])
  } catch {
    // The server says what is wrong with it.
  }
  const fitting = Object.entries(METHODS).find(([field]) => first?.[field] !== undefined)
  if (fitting !== undefined) method.value = fitting[1]
  showGrader()
}

function showGrader(): void {
  byId('grader-label').hidden = method.value !== 'reinforcement'
  grader.required = method.value === 'reinforcement'
}

/** A text to continue, from the first record. */
function promptOf(row: Row | undefined): string | undefined {
  const [message] = (row?.messages ?? row?.prompt ?? []) as readonly { content?: unknown }[]
  const text = typeof message === 'string' ? row?.prompt : (message?.content ?? String(row?.text ?? '').slice(0, 40))
  return typeof text === 'string' && text !== '' ? text : undefined
}

async function begin(base: string): Promise<void> {
  const form = new FormData()
  form.set('purpose', 'fine-tune')
  form.set('file', files.files![0])
  say('Sending the records …')
  const { id: training_file } = await ask<{ id: string }>('/v1/files', form)
  const epochs = inputOf('epochs').value
  const hyperparameters = { n_epochs: epochs === '' ? 'auto' : Number(epochs) }
  const isKto = method.value === 'kto'
  const type = isKto ? 'supervised' : method.value
  const judge = type === 'reinforcement' ? { grader: JSON.parse(grader.value) } : {}
  const suffix = inputOf('suffix').value
  const job = await ask<Job>(JOBS, {
    ...{ model: base, training_file, method: { type, [type]: { hyperparameters, ...judge } } },
    ...(suffix !== '' && { suffix }),
    ...(isKto && { lowrank: { method: 'kto' } }),
  })
  say('')
  cardOf(job, promptOf(first))
}

function cardOf({ id }: Job, prompt?: string): Card {
  let card = cards.get(id)
  if (card === undefined) {
    const [facts, actions] = [make('div'), make('div', { class: 'row' })]
    card = { facts, actions, events: new Map(), samples: new Map(), prompt, isOver: false }
    cards.set(id, card)
    const act = (label: string, action: string) =>
      button(label, () => attempt(() => ask(`${JOBS}/${id}/${action}`, {})))
    actions.append(act('Pause', 'pause'), act('Go on', 'resume'), act('Cancel', 'cancel'))
    byId('jobs').prepend(make('li', { class: 'job' }, facts, actions))
  }
  return card
}

/** The loss of each step as a line. */
function curveOf(losses: readonly number[]): SVGElement {
  const [svg, line] = ['svg', 'polyline'].map((tag) => document.createElementNS('http://www.w3.org/2000/svg', tag))
  const [least, most] = [Math.min(...losses), Math.max(...losses)]
  const points = losses.map((loss, i) => {
    const y = (HEIGHT * (most - loss)) / (most - least || 1)
    return `${(WIDTH * i) / Math.max(1, losses.length - 1)},${y}`
  })
  line.setAttribute('points', points.join(' '))
  svg.setAttribute('viewBox', `-2 -2 ${WIDTH + 4} ${HEIGHT + 4}`)
  svg.setAttribute('role', 'img')
  svg.setAttribute('aria-label', `Loss from ${losses[0].toFixed(3)} to ${losses.at(-1)!.toFixed(3)}`)
  svg.append(line)
  return svg
}

/** Lets new checkpoints continue the prompt of the first record. */
async function sample({ id }: Job, { samples, prompt }: Card): Promise<void> {
  if (prompt === undefined) return
  const { data } = await ask<{ data: Checkpoint[] }>(`${JOBS}/${id}/checkpoints?order=asc`)
  for (const { step_number, fine_tuned_model_checkpoint: model } of data) {
    const name = `after step ${step_number}`
    if (samples.has(name)) continue
    const asked = { model, prompt, max_tokens: 24, temperature: 0 }
    const answer = await ask<{ choices: { text: string }[] }>('/v1/completions', asked)
    samples.set(name, prompt + answer.choices[0].text)
  }
}

/** @param compare shows two models side by side */
async function show(job: Job, compare: (base: string, model: string) => Promise<void>): Promise<void> {
  const card = cardOf(job)
  const { events, samples } = card
  const { id, status, model, fine_tuned_model: result, error } = job
  if (card.isOver) return
  const { data } = await ask<{ data: JobEvent[] }>(`${JOBS}/${id}/events?limit=100`)
  for (const event of data.toReversed()) events.set(event.id, event)
  await sample(job, card).catch((failure: Error) => say(failure.message))
  card.isOver = job.finished_at !== null
  const steps = [...events.values()].flatMap(({ data: step }) => step ?? [])
  const last = steps.at(-1)
  const about =
    last && `step ${last.step}${last.total_steps ? ` of ${last.total_steps}` : ''}, loss ${last.train_loss.toFixed(3)}`
  const told = [...events.values()].filter(({ level, message }) => level !== 'info' || /needs about/.test(message))
  card.facts.replaceChildren(
    make('h2', {}, result ?? id, make('small', {}, [status, about].filter(Boolean).join(' · '))),
    ...(steps.length > 1 ? [curveOf(steps.map(({ train_loss }) => train_loss))] : []),
    ...[...samples].map(([step, text]) => make('p', { class: 'sample' }, make('small', {}, `${step} `), text)),
    ...(error === null ? [] : [make('p', { class: 'error' }, error.message)]),
    ...told.map(({ message }) => make('p', { class: 'soft' }, message)),
  )
  if (!card.isOver) return
  const placeholder = 'a further name, such as support'
  const name = make('input', { placeholder, 'aria-label': placeholder })
  const promote = async () => {
    await ask('/v1/aliases', { name: name.value, model: result })
    say(`${name.value} is ${result} from now on.`)
  }
  card.actions.replaceChildren()
  if (result === null) return
  card.actions.append(
    button('Compare with the base', () => attempt(() => compare(model, result))),
    name,
    button('Promote', () => attempt(promote)),
  )
}

/** Shows the jobs of a server that trains, and follows them. Otherwise this part of the page stays hidden. */
export async function openTraining(
  base: string,
  compare: (base: string, model: string) => Promise<void>,
): Promise<void> {
  const { trains } = await ask<{ trains?: boolean }>('/version')
  if (!trains || !byId('train').hidden) return
  byId('train').hidden = false
  files.addEventListener('change', () => void showExamples())
  method.addEventListener('change', showGrader)
  byId('train-form').addEventListener('submit', (event) => {
    event.preventDefault()
    attempt(() => begin(base))
  })
  document.addEventListener('dragover', (event) => event.preventDefault())
  document.addEventListener('drop', (event) => {
    event.preventDefault()
    if (!event.dataTransfer?.files.length) return
    byId<HTMLDetailsElement>('train').open = true
    files.files = event.dataTransfer.files
    void showExamples()
  })
  for (;;) {
    const { data } = await ask<{ data: Job[] }>(`${JOBS}?limit=20`).catch(() => ({ data: [] as Job[] }))
    for (const job of data.toReversed()) await show(job, compare).catch((error: Error) => say(error.message))
    await new Promise((resolve) => setTimeout(resolve, POLL_MS))
  }
}
