// Answers of the base and of each adapter to an input, side by side, on one model: a text, or labels.

import {
  type AdapterSession,
  type LoraAdapter,
  loadAdapter,
  openSession,
  RuntimeError,
  UnsupportedError,
} from 'lowrank'
import { downloadAdapter, readArchive } from './adapters.js'
import { button, buttonOf, byId, guarded, inputOf, MendableError, make } from './dom.js'
import { hideLayers, showLayers } from './layers.js'
import { threadCount } from './machine.js'
import type { Device, OpenModel } from './models.js'

/** Labels listed of each input. */
const SHOWN_LABELS = 5

interface Card {
  readonly element: HTMLElement
  readonly text: HTMLElement
  readonly speed: HTMLElement
}

export class Writer {
  #session: AdapterSession | undefined
  #open: OpenModel | undefined
  readonly #adapters = new Map<string, LoraAdapter>()
  readonly #cards = new Map<string | null, Card>()
  #stop: AbortController | undefined
  /** The same for all cards of a click. */
  #seed = 0
  /** For models that read pictures. */
  #picture: File | undefined

  /** @param reopen opens the same model again, to compute with something else */
  constructor(reopen: (device: Device) => Promise<void>) {
    byId('prompt-form').addEventListener('submit', (event) => {
      event.preventDefault()
      void guarded('The model cannot write', async () => {
        try {
          await this.#write()
        } catch (error) {
          const isLost = error instanceof RuntimeError && this.#open?.device === 'webgpu'
          throw isLost ? new MendableError(error, 'Go on with WebAssembly', () => reopen('wasm')) : error
        }
      })
    })
    buttonOf('quiet').addEventListener('click', () => this.#stop?.abort())
    const chooser = inputOf('picture')
    chooser.addEventListener('change', () => {
      const file = chooser.files?.[0]
      if (file !== undefined) this.#show(file)
      chooser.value = ''
    })
    const zip = inputOf('adapter-zip')
    zip.addEventListener('change', () => {
      const file = zip.files?.[0]
      if (file !== undefined) void this.#openAdapter(file.name.replace(/\.zip$/, ''), () => readArchive(file))
      zip.value = ''
    })
    const folder = inputOf('adapter-folder')
    folder.addEventListener('change', () => {
      const files = [...(folder.files ?? [])]
      const name = files[0]?.webkitRelativePath.split('/')[0] || 'adapter'
      if (files.length > 0) void this.openFolder(name, files)
      folder.value = ''
    })
  }

  /** Another model: its session takes the place of the one before. The same model keeps its adapters. */
  async use(open: OpenModel): Promise<void> {
    const { model, device, takesChats, reads, writes } = open
    const adapters = this.#open?.source === open.source ? [...this.#adapters] : []
    const session = await openSession(model, {
      device,
      threads: threadCount(),
      adapters: Object.fromEntries(adapters),
    })
    // One whose GPU is gone may not end. The new one has its own worker.
    await this.#session?.dispose().catch(() => {})
    this.#session = session
    this.#open = open
    this.#adapters.clear()
    this.#cards.clear()
    byId('answers').replaceChildren()
    if (adapters.length === 0) hideLayers()
    this.#addCard(null)
    for (const [name, adapter] of adapters) {
      this.#adapters.set(name, adapter)
      this.#addCard(name)
    }
    buttonOf('generate').disabled = false
    const chat = inputOf('as-chat')
    chat.disabled = !takesChats
    chat.checked = takesChats
    this.#show(undefined)
    byId('sampling').hidden = !writes
    byId('prompt').hidden = reads === 'pictures'
    byId('prompt-label').hidden = reads === 'pictures'
    byId('prompt-label').textContent = writes
      ? 'The text to continue, or the question to answer'
      : 'The text that gets labels'
    byId('picture-choice').hidden = reads !== 'pictures'
    buttonOf('quiet').hidden = !writes
    buttonOf('generate').textContent = writes ? 'Write' : 'Give labels'
    byId('write-heading').textContent = writes ? 'Compare what it writes' : 'Compare its labels'
  }

  /** Adds an adapter under the next free name, and shows what it changes. */
  async add(wanted: string, adapter: LoraAdapter): Promise<void> {
    if (this.#session === undefined) throw new Error('No model is open. Choose a model first.')
    let name = wanted
    for (let i = 2; this.#adapters.has(name); i++) name = `${wanted}-${i}`
    await this.#session.add(name, adapter)
    this.#adapters.set(name, adapter)
    this.#addCard(name)
    await showLayers(name, adapter)
  }

  /** Opens the files of an adapter's folder. */
  openFolder(name: string, files: readonly File[]): Promise<void> {
    return this.#openAdapter(name, () => loadAdapter(files))
  }

  #openAdapter(name: string, read: () => Promise<LoraAdapter>): Promise<void> {
    return guarded('The adapter cannot be opened', async () => this.add(name, await read()))
  }

  #addCard(name: string | null): void {
    const speed = make('span')
    const text = make('div', { class: 'text', 'aria-live': 'polite' })
    const row = make('div', { class: 'row' })
    if (name !== null) {
      const adapter = this.#adapters.get(name) as LoraAdapter
      row.append(
        button('Download', () => void guarded('The adapter cannot be saved', () => downloadAdapter(name, adapter))),
        button('Show layers', () => void guarded('The layers cannot be shown', () => showLayers(name, adapter))),
        button('Remove', () => void guarded('The adapter cannot be removed', () => this.#remove(name))),
      )
    }
    const element = make(
      'article',
      { class: 'answer', 'data-adapter': name ?? '' },
      make('h3', {}, name ?? 'The model alone', speed),
      text,
      row,
    )
    byId('answers').append(element)
    this.#cards.set(name, { element, text, speed })
  }

  /** The picture that gets labels; none where it is undefined. */
  #show(picture: File | undefined): void {
    const preview = byId<HTMLImageElement>('preview')
    URL.revokeObjectURL(preview.src)
    this.#picture = picture
    preview.hidden = picture === undefined
    if (picture !== undefined) preview.src = URL.createObjectURL(picture)
  }

  async #remove(name: string): Promise<void> {
    await this.#session?.remove(name)
    this.#adapters.delete(name)
    this.#cards.get(name)?.element.remove()
    this.#cards.delete(name)
  }

  async #write(): Promise<void> {
    const session = this.#session
    if (session === undefined) return
    this.#stop = new AbortController()
    this.#seed = Math.floor(Math.random() * 2 ** 31)
    buttonOf('generate').disabled = true
    buttonOf('quiet').disabled = false
    try {
      // The session runs the tokens of all texts in turn, so that they grow side by side.
      await Promise.all(
        [...this.#cards].map(async ([adapter, card]) => {
          card.element.classList.add('writing')
          try {
            if (this.#givesLabels(adapter)) await this.#label(session, adapter, card)
            else await this.#continue(session, adapter, card, this.#stop!.signal)
          } finally {
            card.element.classList.remove('writing')
          }
        }),
      )
    } finally {
      buttonOf('generate').disabled = false
      buttonOf('quiet').disabled = true
    }
  }
  /** True if an adapter, or the model alone, gives labels. */
  #givesLabels(name: string | null): boolean {
    const adapter = name === null ? undefined : this.#adapters.get(name)
    return this.#open?.writes === false || adapter?.config.taskType === 'SEQ_CLS'
  }

  async #continue(session: AdapterSession, adapter: string | null, { text, speed }: Card, signal: AbortSignal) {
    const prompt = inputOf('prompt').value
    const isChat = inputOf('as-chat').checked
    text.replaceChildren(make('span', { class: 'prompt' }, isChat ? '' : prompt))
    const from = performance.now()
    let pieces = 0
    try {
      const stream = session.stream(isChat ? [{ role: 'user', content: prompt }] : prompt, {
        adapter,
        temperature: Number(inputOf('temperature').value),
        seed: this.#seed,
        maxNewTokens: Number(inputOf('tokens').value),
        signal,
      })
      for await (const piece of stream) {
        text.append(piece)
        pieces++
      }
    } finally {
      speed.textContent = `${Math.round(pieces / ((performance.now() - from) / 1000))} pieces/s`
    }
  }

  async #label(session: AdapterSession, adapter: string | null, { text, speed }: Card): Promise<void> {
    const { reads } = this.#open as OpenModel
    if (reads === 'pictures' && this.#picture === undefined) throw new Error('Choose a picture first.')
    const input = this.#picture === undefined ? inputOf('prompt').value : await bytesOf(this.#picture)
    const from = performance.now()
    try {
      const { labels } = await session.classify(input, { adapter, topK: SHOWN_LABELS })
      text.replaceChildren(make('ol', { class: 'scores' }, ...labels.map(scoreLine)))
      speed.textContent = `${Math.round(performance.now() - from)} ms`
    } catch (error) {
      // A model without a head has labels by its adapters alone.
      if (adapter !== null || !(error instanceof UnsupportedError)) throw error
      text.textContent = 'The model alone gives no labels.'
    }
  }
}

const bytesOf = async (file: File) => new Uint8Array(await file.arrayBuffer())

function scoreLine({ label, score }: { label: string; score: number }): HTMLElement {
  const bar = make('span', { class: 'bar', 'aria-hidden': 'true' })
  bar.style.width = `${Math.max(1, score * 100)}%`
  return make('li', {}, make('span', {}, label), make('span', {}, `${Math.round(score * 100)} %`), bar)
}
