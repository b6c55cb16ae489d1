// The page of `lowrank serve`: pick a model, ask, compare two side by side, train. It speaks the public routes alone.

import './style.css'
import { byId, inputOf, make } from '../src/elements.js'
import { type Event, events, request } from './requests.js'
import { openTraining } from './train.js'

interface Message {
  readonly role: 'system' | 'user' | 'assistant'
  readonly content: string
}

const [left, right] = ['left', 'right'].map((id) => byId<HTMLSelectElement>(id))
const [text, send, stop, curl] = [inputOf('text'), byId('send'), byId('stop'), byId<HTMLButtonElement>('curl')]

/** The conversation of each side so far, by the name of its model. */
const histories = new Map<string, Message[]>()
/** False for models without a chat template, which continue a text. */
let chats = true
let running: AbortController | undefined
/** The last request, for `curl`. */
let last: { readonly path: string; readonly body: object } | undefined

async function loadModels(): Promise<void> {
  const response = await request('/v1/models')
  byId('key').hidden = response.status !== 401
  if (!response.ok) {
    byId('about').textContent = response.status === 401 ? 'A key is needed.' : (await response.json()).error.message
    return
  }
  const models: { id: string; parent: string | null; root: string; created: number }[] = (await response.json()).data
  const [base, ...adapters] = models
  byId('about').textContent = `${base.id}, with ${adapters.length} adapter${adapters.length === 1 ? '' : 's'}`
  for (const [select, labels] of [
    [left, []],
    [right, ['no other model']],
  ] as const) {
    const chosen = select.value
    const options = models.map(({ id, parent }) => new Option(parent === null ? `${id} (the base)` : id, id))
    select.replaceChildren(...labels.map((label) => new Option(label, '')), ...options)
    if (models.some(({ id }) => id === chosen)) select.value = chosen
    else if (select === left) select.value = (adapters[0] ?? base).id
  }
  const cards = adapters.map(({ id, root, created }) => {
    const since = new Date(1000 * created).toLocaleTimeString([], { timeStyle: 'short' })
    const title = make('h2', {}, id, make('small', {}, `loaded at ${since}`))
    return make('li', {}, title, ...(root === id ? [] : [make('span', { class: 'soft' }, `from ${root}`)]))
  })
  void openTraining(base.id, compare)
  byId('cards').replaceChildren(...(cards.length > 0 ? cards : [make('li', {}, 'None is loaded: the base answers.')]))
}

/** Puts two models side by side. */
async function compare(base: string, model: string): Promise<void> {
  await loadModels()
  left.value = base
  right.value = model
  text.focus()
}

function requestFor(model: string, asked: string): { path: string; body: object } {
  const settings: Record<string, number> = {}
  for (const name of ['max_tokens', 'temperature', 'top_p', 'seed']) {
    if (inputOf(name).value !== '') settings[name] = inputOf(name).valueAsNumber
  }
  const stream = { stream: true, stream_options: { include_usage: true } }
  if (!chats) return { path: '/v1/completions', body: { model, prompt: asked, ...settings, ...stream } }
  const system = inputOf('system').value
  const messages: Message[] = [
    ...(system === '' ? [] : [{ role: 'system', content: system } as const]),
    ...(histories.get(model) ?? []),
    { role: 'user', content: asked },
  ]
  return { path: '/v1/chat/completions', body: { model, messages, ...settings, ...stream } }
}

/** Writes one side's answer into its place as it comes. */
async function answer(model: string, asked: string, place: HTMLElement, signal: AbortSignal): Promise<void> {
  const [words, speed] = [make('p'), make('small')]
  place.replaceChildren(make('h2', {}, model, speed), words)
  const asChat = chats
  const startedAt = performance.now()
  let written = ''
  let [firstAt, tokens, end]: [firstAt?: number, tokens?: number, end?: string] = []
  const read = ({ choices, usage, error }: Event) => {
    if (error !== undefined) throw new Error(error.message)
    const [choice] = choices ?? []
    const piece = choice?.delta?.content ?? choice?.text ?? ''
    if (piece !== '') firstAt ??= performance.now()
    end = choice?.finish_reason ?? end
    tokens = usage?.completion_tokens ?? tokens
    written += piece
    words.textContent = asChat ? written : asked + written
  }
  try {
    last = requestFor(model, asked)
    const response = await request(last.path, last.body, signal)
    if (!response.ok) throw new Error((await response.json()).error.message)
    for await (const event of events(response)) read(event)
  } catch (error) {
    if (signal.aborted) end = 'stopped'
    else if (asChat && written === '' && /chat template/.test(String(error))) {
      chats = false
      byId('text-label').textContent = 'A text to continue: this model has no chat template'
      return answer(model, asked, place, signal)
    } else {
      const message = make('p', { class: 'error' }, (error as Error).message)
      message.role = 'alert'
      if (written === '') words.remove()
      place.append(message)
      return
    }
  }
  if (asChat) {
    const history = histories.get(model) ?? []
    histories.set(model, [...history, { role: 'user', content: asked }, { role: 'assistant', content: written }])
  }
  words.classList.toggle('cut', end === 'length')
  const seconds = (performance.now() - (firstAt ?? startedAt)) / 1000
  const rate = tokens !== undefined && tokens > 1 ? `${tokens} tokens, ${((tokens - 1) / seconds).toFixed(1)}/s` : ''
  const first = firstAt === undefined ? '' : `first after ${Math.round(firstAt - startedAt)} ms`
  const cut = end === 'length' ? 'cut at the limit' : end === 'stopped' ? 'stopped' : ''
  speed.textContent = [rate, first, cut].filter(Boolean).join(' · ')
}

async function ask(asked: string): Promise<void> {
  const models = [...new Set([left.value, right.value].filter((name) => name !== ''))]
  running = new AbortController()
  const { signal } = running
  const places = models.map(() => make('article', { class: 'answer' }))
  byId('turns').append(
    make('li', {}, make('p', { class: 'asked' }, asked), make('div', { class: 'answers' }, ...places)),
  )
  const setBusy = (isBusy: boolean) => {
    stop.hidden = !isBusy
    send.hidden = isBusy
    byId('turns').setAttribute('aria-busy', String(isBusy))
    byId('state').textContent = isBusy ? 'Writing …' : ''
  }
  setBusy(true)
  places.at(-1)?.scrollIntoView({ block: 'nearest' })
  await Promise.all(models.map((model, i) => answer(model, asked, places[i], signal)))
  setBusy(false)
  curl.disabled = false
  running = undefined
  text.focus()
  // A request may have loaded an adapter, or one may have left.
  await loadModels()
}

byId('composer').addEventListener('submit', (event) => {
  event.preventDefault()
  const asked = text.value
  if (running !== undefined || asked.trim() === '' || left.value === '') return
  text.value = ''
  void ask(asked)
})
text.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
  event.preventDefault()
  byId<HTMLFormElement>('composer').requestSubmit()
})
stop.addEventListener('click', () => running?.abort())
byId('clear').addEventListener('click', () => {
  running?.abort()
  histories.clear()
  byId('turns').replaceChildren()
  text.focus()
})
byId('key').addEventListener('submit', (event) => {
  event.preventDefault()
  sessionStorage.setItem('key', inputOf('key-text').value)
  inputOf('key-text').value = ''
  void loadModels()
})
curl.addEventListener('click', async () => {
  if (last === undefined) return
  const quoted = JSON.stringify(last.body).replaceAll("'", "'\\''")
  const key = sessionStorage.getItem('key') === null ? '' : ' -H "Authorization: Bearer $LOWRANK_API_KEY"'
  const url = `'${location.origin}${last.path}'`
  await navigator.clipboard.writeText(`curl -N ${url} -H 'Content-Type: application/json'${key} -d '${quoted}'`)
  byId('state').textContent = 'Copied, without the key.'
})
void loadModels()
