// Shows the answers of the base and of each adapter to an input, side by side.

import {
  type AdapterSession,
  type GenerateResult,
  type LoraAdapter,
  loadAdapter,
  openSession,
  RuntimeError,
  UnsupportedError,
} from 'lowrank'
import { download, filesOfAdapter, readArchive } from './adapters.js'
import { type AnswerKind, answerOf, differences, KINDS } from './answers.js'
import { button, buttonOf, byId, guarded, inputOf, MendableError, make, numberOf, onFiles } from './dom.js'
import { showLayers } from './layers.js'
import type { LessonCard } from './lesson.js'
import { foldOnPhones, threadCount } from './machine.js'
import type { Device, OpenModel } from './models.js'

/** The labels of the form for each kind of answer: its button, its heading, and its input. */
const WORDS: Readonly<Record<AnswerKind, readonly [button: string, heading: string, input: string]>> = {
  text: ['Write', 'Compare what it writes', 'The text to continue, or the question to answer'],
  labels: ['Give labels', 'Compare its labels', 'The text that gets labels'],
  names: ['Find names', 'Compare the names it finds', 'The text with names'],
  finds: ['Search', 'Compare what it finds', 'What you search for'],
}

const MIX = 'All of them mixed'
/** Weights from this size on must be in memory only once: they are not repacked, and no second session is opened. */
const LARGE = 2 ** 28
const LESSON_TOKENS = 24
const LEARNER = 'the learner'

interface Card {
  readonly element: HTMLElement
  readonly text: HTMLElement
  readonly speed: HTMLElement
  /** The slider for the adapter's weight. 1 is the adapter as it was trained. */
  readonly strength: HTMLInputElement
}

export class Writer {
  #session: AdapterSession | undefined
  #open: OpenModel | undefined
  readonly #adapters = new Map<string, LoraAdapter>()
  readonly #cards = new Map<string | null, Card>()
  #stop: AbortController | undefined
  /** The input, for models that read pictures. */
  #picture: File | undefined
  /** The texts that a search can find. */
  #texts: readonly string[] = []
  /** Texts that the model alone wrote in the lesson, by question. */
  readonly #alone = new Map<string, string>()

  /** @param keep is called to keep an adapter that the user opens */
  constructor(
    reopen: (device: Device) => Promise<void>,
    private readonly keep: (name: string, adapter: LoraAdapter) => Promise<void>,
  ) {
    byId('prompt-form').addEventListener('submit', (event) => {
      event.preventDefault()
      void guarded('write', 'The model cannot write', async () => {
        try {
          await this.write()
        } catch (error) {
          const isLost = error instanceof RuntimeError && this.#open?.device === 'webgpu'
          throw isLost ? new MendableError(error, 'Go on with WebAssembly', () => reopen('wasm')) : error
        }
      })
    })
    addEventListener('beforeunload', (event) => {
      if (this.#stop !== undefined) event.preventDefault()
    })
    buttonOf('quiet').addEventListener('click', () => this.#stop?.abort())
    inputOf('prompt').addEventListener('blur', () => {
      inputOf('prompt').value ||= inputOf('prompt').placeholder
    })
    onFiles('picture', ([file]) => this.show(file))
    onFiles('adapter-zip', ([file]) => void this.#openAdapters(() => readArchive(file)))
    onFiles('adapter-folder', (files) => {
      void this.openFolder(files[0].webkitRelativePath.split('/')[0] || 'adapter', files)
    })
  }

  /** Opens a session for a model. If the model is already open, its adapters are kept. */
  async use(open: OpenModel): Promise<void> {
    const { model, device, takesChats, reads } = open
    const adapters = this.#open?.source === open.source ? [...this.#adapters] : []
    const session = await openSession(model, {
      device,
      threads: threadCount(),
      adapters: Object.fromEntries(adapters),
      memory: isLarge(open) ? 'low' : 'fast',
    })
    this.#stop?.abort()
    // If the GPU is lost, the old session may not close. That does not matter: the new session has a new worker.
    await this.#session?.dispose().catch(() => {})
    this.#session = session
    this.#open = open
    this.#adapters.clear()
    this.#cards.clear()
    this.#alone.clear()
    byId('answers').replaceChildren()
    if (adapters.length === 0) byId('layers').hidden = true
    this.#addCard(null)
    for (const [name, adapter] of adapters) {
      this.#adapters.set(name, adapter)
      this.#addCard(name)
    }
    buttonOf('generate').disabled = false
    const chat = inputOf('as-chat')
    chat.disabled = !takesChats
    chat.checked = takesChats
    this.show(this.#picture)
    byId('prompt').hidden = reads === 'pictures'
    byId('prompt-label').hidden = reads === 'pictures'
    byId('picture-choice').hidden = reads !== 'pictures'
    this.tell(this.#kindOf(null))
  }

  /** Does work that also opens the model. If the model is large, its session is closed first and opened again after. */
  async makeRoom<T>(work: () => Promise<T>): Promise<T> {
    const open = this.#open
    if (open === undefined || !isLarge(open)) return work()
    buttonOf('generate').disabled = true
    this.#stop?.abort()
    const session = this.#session
    this.#session = undefined
    await session?.dispose()
    try {
      return await work()
    } finally {
      await this.use(open)
    }
  }

  /** Sets the labels of the form. */
  tell(kind: AnswerKind): void {
    const [label, heading, input] = WORDS[kind]
    buttonOf('generate').textContent = label
    byId('write-heading').textContent = heading
    byId('prompt-label').textContent = input
    byId('sampling').hidden = kind !== 'text'
  }

  has(name: string): boolean {
    return this.#adapters.has(name)
  }

  /** True if the form has an input. Only a picture can be missing. */
  get hasInput(): boolean {
    return this.#open?.reads === 'text' || this.#picture !== undefined
  }

  /**
   * Answers the questions of a lesson with the model alone and with an adapter, which may be unfinished. Returns
   * undefined while the session is busy, and if the model reads pictures.
   *
   * @param texts the texts that an adapter for search can find
   */
  async answersOf(
    adapter: LoraAdapter,
    questions: readonly string[],
    texts: readonly string[],
  ): Promise<LessonCard[] | undefined> {
    const session = this.#session
    if (session === undefined || this.#stop !== undefined || this.#open?.reads !== 'text') return undefined
    await session.add(LEARNER, adapter)
    try {
      const kind = this.#kindOf(LEARNER, adapter)
      const { writes } = this.#open
      return await Promise.all(
        questions.map(async (question) => {
          const written = writes && kind !== 'finds' ? await this.#text(session, question, null) : undefined
          if (kind === 'text' && written !== undefined)
            return { question, alone: [written], taught: marked(await this.#text(session, question, LEARNER), written) }
          const answer = async (name: string | null) => [await answerOf(session, kind, question, name, texts)]
          const taught = await answer(LEARNER)
          if (kind === 'finds') return { question, alone: await answer(null), taught }
          return { question, taught, writesOn: written }
        }),
      )
    } finally {
      await session.remove(LEARNER)
    }
  }

  async #text(session: AdapterSession, question: string, adapter: string | null): Promise<string> {
    const known = adapter === null ? this.#alone.get(question) : undefined
    if (known !== undefined) return known
    const prompt = inputOf('as-chat').checked ? [{ role: 'user', content: question }] : question
    const result = await session.generate(prompt, { adapter, temperature: 0, maxNewTokens: LESSON_TOKENS })
    const text = whole(result)
    if (adapter === null) this.#alone.set(question, text)
    return text
  }

  /** @param texts the texts that an adapter for search can find */
  async add(wanted: string, adapter: LoraAdapter, texts: readonly string[] = []): Promise<void> {
    if (this.#session === undefined)
      throw new Error(
        this.#open === undefined
          ? 'No model is open. Open one under “The model” first.'
          : 'Wait until the model has learned.',
      )
    const name = nextFree(wanted, (taken) => this.has(taken))
    await this.#session.add(name, adapter)
    this.#adapters.set(name, adapter)
    if (texts.length > 0) this.#texts = texts
    this.#addCard(name)
    this.tell(this.#kindOf(null))
    await showLayers(name, adapter)
  }

  openFolder(name: string, files: readonly File[]): Promise<void> {
    return this.#openAdapters(async () => [{ name, adapter: await loadAdapter(files) }])
  }

  #openAdapters(read: () => Promise<readonly { name: string; adapter: LoraAdapter }[]>): Promise<void> {
    return guarded('write', 'The adapter cannot be opened', async () => {
      for (const { name, adapter } of await read()) {
        await this.add(name, adapter)
        await this.keep(name, adapter)
      }
    })
  }

  #addCard(name: string | null): void {
    const speed = make('span')
    const text = make('div', { class: 'text', 'aria-live': 'polite' })
    const row = make('div', { class: 'row' })
    const strength = make('input', { type: 'range', min: '0', max: '2', step: '0.1', value: '1' })
    const adapter = name === null ? undefined : this.#adapters.get(name)
    if (name !== null && adapter !== undefined) {
      const tell = make('output', {}, '1')
      strength.addEventListener('input', () => {
        tell.textContent = strength.value
      })
      const act = (label: string, title: string, work: () => Promise<void>) =>
        button(label, () => void guarded('write', title, work))
      row.append(
        // A head cannot be applied in part, so it has no strength.
        ...(this.#hasHead(name) ? [] : [make('label', { class: 'strength' }, 'Strength', strength, tell)]),
        act('Download', 'The adapter cannot be saved', async () => download(name, await filesOfAdapter(name, adapter))),
        act('Show layers', 'The layers cannot be shown', () => showLayers(name, adapter)),
        act('Close', 'The adapter cannot be closed', () => this.#remove(name)),
      )
    }
    const element = make(
      'article',
      { class: 'answer', 'data-adapter': name ?? '' },
      make('h3', {}, name ?? 'The model alone', speed),
      text,
      ...(row.childElementCount === 0 ? [] : [make('details', { class: 'fold' }, make('summary', {}, 'More'), row)]),
    )
    // The card of the model alone is empty until it answers, so it is hidden. The card of an adapter has buttons.
    element.hidden = name === null
    foldOnPhones(element)
    byId('answers').append(element)
    this.#cards.set(name, { element, text, speed, strength })
    // Heads cannot be mixed.
    const mixable = [...this.#adapters].filter(([adapterName]) => !this.#hasHead(adapterName))
    if (adapter !== undefined && mixable.length === 2 && !this.#cards.has(MIX)) this.#addCard(MIX)
  }

  /** Shows the picture that gets labels, if the model reads pictures. */
  show(picture: File | undefined): void {
    const preview = byId<HTMLImageElement>('preview')
    URL.revokeObjectURL(preview.src)
    this.#picture = picture
    preview.hidden = picture === undefined || this.#open?.reads !== 'pictures'
    if (picture !== undefined) preview.src = URL.createObjectURL(picture)
  }

  async #remove(name: string): Promise<void> {
    await this.#session?.remove(name)
    this.#adapters.delete(name)
    for (const card of this.#adapters.size < 2 ? [name, MIX] : [name]) {
      this.#cards.get(card)?.element.remove()
      this.#cards.delete(card)
    }
  }

  #choiceOf(name: string | null): Record<string, number> | string | null {
    if (name === null || this.#hasHead(name)) return name
    const names =
      name === MIX ? [...this.#adapters.keys()].filter((adapterName) => !this.#hasHead(adapterName)) : [name]
    return Object.fromEntries(
      names.map((adapterName) => [adapterName, Number(this.#cards.get(adapterName)?.strength.value ?? 1)]),
    )
  }

  async write(): Promise<void> {
    const session = this.#session
    if (session === undefined) return
    inputOf('prompt').value ||= inputOf('prompt').placeholder
    this.#stop = new AbortController()
    const { signal } = this.#stop
    buttonOf('generate').disabled = true
    buttonOf('quiet').hidden = this.#kindOf(null) !== 'text'
    try {
      // The session writes all texts at the same time, so that they grow side by side.
      await Promise.all(
        [...this.#cards].map(async ([adapter, card]) => {
          card.element.classList.add('writing')
          try {
            const kind = this.#kindOf(adapter)
            if (kind === 'text') await this.#continue(session, adapter, card, signal)
            else await this.#answer(session, adapter, kind, card)
          } finally {
            card.element.classList.remove('writing')
          }
        }),
      )
    } finally {
      this.#stop = undefined
      buttonOf('generate').disabled = false
      buttonOf('quiet').hidden = true
    }
    this.#mark()
  }

  /** In each adapter's text, marks the words that the text of the model alone does not have. */
  #mark(): void {
    byId('tint').hidden = true
    const [alone, ...others] = [...this.#cards.values()].map(({ text }) => text)
    const written = (text: HTMLElement) => text.querySelector('.written')
    const base = written(alone)?.textContent
    for (const text of others) {
      const passage = written(text)
      if (base == null || passage === null) continue
      passage.replaceChildren(...marked(passage.textContent ?? '', base))
      byId('tint').hidden = passage.querySelector('mark') === null
    }
  }

  /**
   * Returns the kind of an adapter. The model alone writes if it can and an adapter does too; otherwise it has the kind
   * of the newest adapter, so that labels stand beside labels.
   */
  #kindOf(name: string | null, adapter = this.#adapters.get(name ?? '')): AnswerKind {
    const usual = this.#open?.writes ? 'text' : 'labels'
    const kind = ({ config }: LoraAdapter) => KINDS[config.taskType ?? ''] ?? usual
    if (adapter !== undefined) return kind(adapter)
    const kinds = [...this.#adapters.values()].map(kind)
    return kinds.includes('text') ? 'text' : (kinds.at(-1) ?? usual)
  }

  /** True if an adapter has a head, which can neither be applied in part nor mixed. */
  #hasHead(name: string): boolean {
    return /labels|names/.test(this.#kindOf(name))
  }

  async #continue(session: AdapterSession, name: string | null, { element, text, speed }: Card, signal: AbortSignal) {
    const prompt = inputOf('prompt').value
    const isChat = inputOf('as-chat').checked
    const written = make('span', { class: 'written' })
    text.replaceChildren(make('span', { class: 'prompt' }, isChat ? '' : prompt), written)
    element.hidden = false
    const from = performance.now()
    try {
      const stream = session.stream(isChat ? [{ role: 'user', content: prompt }] : prompt, {
        adapter: this.#choiceOf(name),
        temperature: numberOf('temperature'),
        seed: numberOf('seed'),
        maxNewTokens: numberOf('tokens'),
        signal,
      })
      let next = await stream.next()
      for (; !next.done; next = await stream.next()) written.append(next.value)
      written.textContent = whole(next.value)
    } finally {
      speed.textContent = secondsSince(from)
    }
  }

  async #answer(
    session: AdapterSession,
    name: string | null,
    kind: AnswerKind,
    { element, text, speed }: Card,
  ): Promise<void> {
    const { reads } = this.#open as OpenModel
    const picture = reads === 'pictures' ? this.#picture : undefined
    if (reads === 'pictures' && picture === undefined) throw new Error('Choose a picture first.')
    const input = picture === undefined ? inputOf('prompt').value : new Uint8Array(await picture.arrayBuffer())
    const from = performance.now()
    try {
      text.replaceChildren(await answerOf(session, kind, input, this.#choiceOf(name), this.#texts))
      element.hidden = false
      speed.textContent = secondsSince(from)
    } catch (error) {
      // A model without a head gives labels only with an adapter.
      if (name !== null || !(error instanceof UnsupportedError)) throw error
      text.textContent = `The model alone gives no ${kind}.`
      element.hidden = true
    }
  }
}

export function nextFree(wanted: string, isTaken: (name: string) => boolean): string {
  let name = wanted
  for (let i = 2; isTaken(name); i++) name = `${wanted}-${i}`
  return name
}

function isLarge({ model }: OpenModel): boolean {
  return [...model.onnx.files.values()].reduce((sum, { byteLength }) => sum + byteLength, 0) >= LARGE
}

/** Returns a written text. If a limit cut it, it ends after a whole word, with "…". */
const whole = ({ text, finish }: GenerateResult): string =>
  /eos|stop/.test(finish) ? text : text.replace(/\s+\S*$/, ' …')

/** Marks the words of a text that are not in the text of the model alone. */
const marked = (text: string, alone: string): (Node | string)[] =>
  differences(text, alone).flatMap(([part, isNew]) => {
    const words = part.trimStart()
    return isNew ? [part.slice(0, part.length - words.length), make('mark', {}, words)] : [part]
  })

const secondsSince = (from: number) => `${((performance.now() - from) / 1000).toFixed(2)} s`
