// What an adapter changes, layer by layer.

import { inspect, type LoraAdapter } from 'lowrank'
import { byId, make } from './dom.js'

/** Lists the layers, the largest change first. */
export async function showLayers(name: string, adapter: LoraAdapter): Promise<void> {
  const report = await inspect(adapter)
  if (report.kind !== 'adapter') return
  const layers = [...report.layers].sort((a, b) => b.normDelta - a.normDelta)
  const largest = layers[0]?.normDelta || 1
  const rows = layers.map((layer) =>
    make(
      'tr',
      {},
      make('td', {}, layer.name),
      make('td', { class: 'figure' }, `${layer.d} × ${layer.k}`),
      make('td', { class: 'figure' }, String(layer.rank)),
      make('td', { class: 'figure' }, layer.normDelta.toPrecision(3)),
      make('td', { class: 'bars', 'aria-hidden': 'true' }, bar(layer.normDelta / largest)),
    ),
  )
  const headings = ['Layer', 'Shape', 'Rank', 'Size of the change', 'Compared with the largest']
  const head = make('thead', {}, make('tr', {}, ...headings.map((text) => make('th', { scope: 'col' }, text))))
  byId('layers-table').replaceChildren(make('table', {}, head, make('tbody', {}, ...rows)))
  byId('layers-table').hidden = false
  byId('layers-state').textContent =
    `${name}: ${report.trainableParams.toLocaleString()} trained parameters in ${layers.length} layers.`
}

function bar(share: number): HTMLElement {
  const element = make('span', { class: 'bar' })
  element.style.width = `${Math.max(1, share * 100)}%`
  return element
}
