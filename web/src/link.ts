// Opens an adapter from a link: #adapter=…&model=… with Hub ids or URLs. Nothing is fetched before the visitor agrees.

import { type LoraAdapter, loadAdapter } from 'lowrank'
import { button, byId, guarded, make } from './dom.js'
import { MODELS, type ModelChoice } from './models.js'

const isUrl = (source: string) => /^https?:\/\//.test(source)
const originOf = (source: string) => (isUrl(source) ? new URL(source).host : 'the Hugging Face Hub')

export function askAboutLink(
  open: (model: ModelChoice, name: string, read: () => Promise<LoraAdapter>, link: string) => Promise<void>,
): boolean {
  const asked = new URLSearchParams(location.hash.slice(1))
  const [adapter, model] = ['adapter', 'model'].map((name) => asked.get(name)?.trim() ?? '')
  if (adapter === '') return false
  const offered = MODELS.find(({ choice, name }) => name === model || (choice.kind === 'hub' && choice.id === model))
  const choice: ModelChoice = offered?.choice ?? (model === '' ? { kind: 'bundled' } : { kind: 'hub', id: model })
  const size = offered === undefined ? (model === '' ? MODELS[0].facts : 'size unknown until it loads') : offered.facts
  const panel = byId('link')
  panel.replaceChildren(
    make('h2', {}, 'Open an adapter by link?'),
    make(
      'ul',
      {},
      make('li', {}, make('strong', {}, `The adapter ${adapter}`), `, from ${originOf(adapter)}, usually some MB`),
      make(
        'li',
        {},
        make('strong', {}, `The model ${model || MODELS[0].name}`),
        `, from ${choice.kind === 'bundled' ? 'this site' : originOf(model)}, ${size}`,
      ),
    ),
    make('p', { class: 'state' }, 'Nothing is fetched before you agree. An adapter is data: it runs no code.'),
    make(
      'div',
      { class: 'row' },
      button('Open them', () => {
        panel.hidden = true
        void guarded('write', 'The adapter cannot be opened', async () => {
          const name = adapter.split('/').filter(Boolean).at(-1) ?? 'linked'
          const link = isUrl(adapter) ? adapter : `hf:${adapter.replace(/^hf:/, '')}`
          await open(choice, name.replace(/[^\w.-]+/g, '-'), () => loadAdapter(link), link)
        })
      }),
      button('No', () => {
        panel.hidden = true
      }),
    ),
  )
  panel.hidden = false
  return true
}
