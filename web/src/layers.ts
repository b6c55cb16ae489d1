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
  byId('heat').replaceChildren(heatMap(layers, largest))
  byId('heat').hidden = false
  byId('layers-table').replaceChildren(make('table', {}, head, make('tbody', {}, ...rows)))
  byId('layers-table').hidden = false
  byId('layers-state').textContent =
    `${name}: ${report.trainableParams.toLocaleString()} trained parameters in ${layers.length} layers.`
}

/** A cell for each block (row) and module (column); the fuller its colour, the larger the change. */
function heatMap(layers: readonly { name: string; normDelta: number }[], largest: number): HTMLElement {
  const rows = new Map<string, Map<string, number>>()
  const columns = new Set<string>()
  for (const { name, normDelta } of layers) {
    const [, block = '', module = name] = /\.(\d+)\.(.+)$/.exec(name) ?? []
    columns.add(module)
    const row = rows.get(block) ?? new Map()
    rows.set(block, row.set(module, normDelta))
  }
  const blocks = [...rows.keys()].sort((a, b) => Number(a) - Number(b))
  const modules = [...columns].sort()
  const head = ['Block', ...modules].map((text) => make('th', { scope: 'col' }, text))
  const body = blocks.map((block) =>
    make(
      'tr',
      {},
      make('th', { scope: 'row' }, block),
      ...modules.map((one) => cell(rows.get(block)?.get(one), largest)),
    ),
  )
  return make('table', { class: 'heat' }, make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...body))
}

function cell(size: number | undefined, largest: number): HTMLElement {
  if (size === undefined) return make('td')
  const square = make(
    'span',
    { class: 'heat-cell', title: size.toPrecision(3) },
    make('span', { class: 'hidden' }, size.toPrecision(3)),
  )
  square.style.opacity = String(0.08 + (0.92 * size) / largest)
  return make('td', {}, square)
}

function bar(share: number): HTMLElement {
  const element = make('span', { class: 'bar' })
  element.style.width = `${Math.max(1, share * 100)}%`
  return element
}
