// Writes with the base and with each adapter, side by side, on one model.

import { type AdapterSession, type LoraAdapter, loadAdapter, openSession, RuntimeError } from 'lowrank'
import { downloadAdapter, readArchive } from './adapters.js'
import { button, buttonOf, byId, guarded, inputOf, MendableError, make } from './dom.js'
import { showLayers } from './layers.js'
import type { Device, OpenModel } from './models.js'

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
    const { model, device, takesChats } = open
    const adapters = this.#open?.source === open.source ? [...this.#adapters] : []
    const session = await openSession(model, { device, adapters: Object.fromEntries(adapters) })
    // One whose GPU is gone may not end. The new one has its own worker.
    await this.#session?.dispose().catch(() => {})
    this.#session = session
    this.#open = open
    this.#adapters.clear()
    this.#cards.clear()
    byId('answers').replaceChildren()
    this.#addCard(null)
    for (const [name, adapter] of adapters) {
      this.#adapters.set(name, adapter)
      this.#addCard(name)
    }
    buttonOf('generate').disabled = false
    const chat = inputOf('as-chat')
    chat.disabled = !takesChats
    chat.checked = takesChats
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
    const text = make('p', { class: 'text', 'aria-live': 'polite' })
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
    const { signal } = this.#stop
    buttonOf('generate').disabled = true
    buttonOf('quiet').disabled = false
    const prompt = inputOf('prompt').value
    const isChat = inputOf('as-chat').checked
    const temperature = Number(inputOf('temperature').value)
    const seed = Math.floor(Math.random() * 2 ** 31)
    try {
      const cards = [...this.#cards]
      // The session runs the tokens of all texts in turn, so that they grow side by side.
      await Promise.all(
        cards.map(async ([adapter, { element, text, speed }]) => {
          element.classList.add('writing')
          const shown = isChat ? '' : prompt
          text.replaceChildren(make('span', { class: 'prompt' }, shown))
          const from = performance.now()
          let pieces = 0
          try {
            const stream = session.stream(isChat ? [{ role: 'user', content: prompt }] : prompt, {
              adapter,
              temperature,
              seed,
              maxNewTokens: Number(inputOf('tokens').value),
              signal,
            })
            for await (const piece of stream) {
              text.append(piece)
              pieces++
            }
          } finally {
            element.classList.remove('writing')
            speed.textContent = `${Math.round(pieces / ((performance.now() - from) / 1000))} pieces/s`
          }
        }),
      )
    } finally {
      buttonOf('generate').disabled = false
      buttonOf('quiet').disabled = true
    }
  }
}
