// Links to adapters: #adapter=… names a Hub id or a URL, and #zip=… contains a small adapter. A link may also say on
// which model and data the adapter learned, what it gained, and what to ask. Nothing is fetched or unpacked before the
// visitor agrees.

import { zipSync } from 'fflate'
import { type LoraAdapter, loadAdapter, MemoryDirectory, saveAdapter } from 'lowrank'
import { readArchive } from './adapters.js'
import { button, byId, copyButton, guarded, inputOf, make, sizeOf } from './dom.js'
import { isSame, MODELS, type ModelChoice } from './models.js'
import { type KeptAdapter, openKept } from './store.js'

/** Longer links do not survive chats and mails. */
const MAX_LINK_BYTES = 32_000
/** Far more than an adapter of a link needs, and far less than an archive of its size can unpack to. */
const MAX_UNPACKED_BYTES = 1 << 20

const isUrl = (source: string) => /^https?:\/\//.test(source)
const originOf = (source: string) => (isUrl(source) ? new URL(source).host : 'the Hugging Face Hub')
const item = (title: string, ...about: string[]) => make('li', {}, make('strong', {}, title), ...about)

export function askAboutLink(
  open: (model: ModelChoice, name: string, adapter: LoraAdapter, from: { link: string; ask: string }) => Promise<void>,
): void {
  const asked = new URLSearchParams(location.hash.slice(1))
  const [adapter, zip, model, data, gain, ask] = ['adapter', 'zip', 'model', 'data', 'gain', 'ask'].map(
    (name) => asked.get(name)?.trim() ?? '',
  )
  if (adapter === '') return
  const offered = MODELS.find(({ choice, name }) => name === model || (choice.kind === 'hub' && choice.id === model))
  const choice: ModelChoice = offered?.choice ?? (model === '' ? { kind: 'bundled' } : { kind: 'hub', id: model })
  const size = offered === undefined ? (model === '' ? MODELS[0].facts : 'size unknown until it loads') : offered.facts
  const panel = byId('link')
  const name = (adapter.split('/').filter(Boolean).at(-1) ?? 'linked').replace(/[^\w.-]+/g, '-')
  const from = zip === '' ? `, from ${originOf(adapter)}, usually some MB` : `, in the link: ${sizeOf(zip.length)}`
  const learned = [data && `from ${data}`, gain].filter(Boolean).join(': ')
  const close = () => {
    panel.hidden = true
  }
  const agree = () => {
    close()
    void guarded('write', 'The adapter cannot be opened', async () => {
      const link = zip !== '' ? `zip:${zip}` : isUrl(adapter) ? adapter : `hf:${adapter.replace(/^hf:/, '')}`
      await open(choice, name, await (zip === '' ? loadAdapter(link) : unpacked(zip)), { link, ask })
    })
  }
  panel.replaceChildren(
    make('h2', {}, 'Open an adapter by link?'),
    make(
      'ul',
      {},
      item(`The adapter ${adapter}`, from),
      item(
        `The model ${model || MODELS[0].name}`,
        `, from ${choice.kind === 'bundled' ? 'this site' : originOf(model)}, ${size}`,
      ),
      ...(learned === '' ? [] : [item('What it learned', `, as the link says: ${learned}`)]),
    ),
    make('p', { class: 'state' }, 'Nothing is fetched before you agree. An adapter is data: it runs no code.'),
    make('div', { class: 'row' }, button('Open the adapter', agree, { class: 'main' }), button('Not now', close)),
  )
  panel.hidden = false
}

async function unpacked(zip: string): Promise<LoraAdapter> {
  const text = atob(zip.replaceAll('-', '+').replaceAll('_', '/'))
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0))
  const [{ adapter }] = await readArchive(new File([bytes], 'the link'), MAX_UNPACKED_BYTES)
  return adapter
}

/** Returns the adapter as text for a link, in half precision. */
async function packed(adapter: LoraAdapter): Promise<string> {
  const folder = new MemoryDirectory()
  await saveAdapter(adapter, folder, { dtype: 'fp16' })
  const names = ['adapter_config.json', 'adapter_model.safetensors']
  const files = Object.fromEntries(names.map((name) => [name, folder.files.get(name)!]))
  const characters = Array.from(zipSync(files, { level: 9 }), (byte) => String.fromCharCode(byte))
  return btoa(characters.join('')).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '')
}

/** Shows a card of a kept adapter with its link, or closes the card if it is already shown. */
export async function showShare({ name, job, gain = '', modelName, bytes }: KeptAdapter): Promise<void> {
  const card = byId('share')
  if (!card.hidden && card.dataset.of === name) {
    card.hidden = true
    return
  }
  const zip = await packed(await openKept(name))
  const isWhole = zip.length <= MAX_LINK_BYTES
  const offered = job && MODELS.find(({ choice }) => isSame(choice, job.choice))
  const model = offered?.name ?? (job?.choice.kind === 'hub' ? job.choice.id : modelName)
  const data = job?.dataName ?? ''
  const link = make('input', { readonly: '', 'aria-label': `The link of ${name}` })
  const copy = copyButton(() => link.value)
  const write = (adapter: string) => {
    const facts = { adapter, model, data, gain, ask: inputOf('prompt').value, zip: isWhole ? zip : '' }
    const parts = new URLSearchParams(Object.entries(facts).filter(([, value]) => value !== ''))
    link.value = adapter && `${location.href.split('#')[0]}#${parts}`
    copy.disabled = adapter === ''
  }
  write(isWhole ? name : '')
  const address = make('input', { placeholder: `you/${name}`, autocomplete: 'off' })
  address.addEventListener('input', () => write(address.value.trim()))
  const steps = [
    make('li', {}, 'Press “Download” above, and unpack the file.'),
    make(
      'li',
      {},
      'Put it on the Hub, or on any web server. For the Hub: ',
      make('code', {}, `npx lowrank push ${name} you/${name}`),
    ),
    make('li', {}, make('label', {}, 'Type its id on the Hub or its address: ', address)),
    make('li', {}, 'Copy the link:'),
  ]
  card.replaceChildren(
    make('h3', {}, name),
    make('p', {}, `For ${model}${data && `, learned from ${data}`}${gain && `: ${gain}`}.`),
    ...(isWhole
      ? [make('p', {}, `The whole adapter is in the link: ${sizeOf(zip.length)}.`)]
      : [
          make('p', {}, `This adapter (${sizeOf(bytes)}) is larger than a link can hold (${sizeOf(MAX_LINK_BYTES)}).`),
          make('ol', {}, ...steps),
        ]),
    link,
    make(
      'div',
      { class: 'row' },
      copy,
      button('Close', () => document.querySelector<HTMLElement>('#adapters [aria-expanded=true]')?.click()),
    ),
  )
  card.dataset.of = name
  card.hidden = false
}
