// Shows how much an adapter changes each layer.

import { inspect, type LoraAdapter, type Spectrum } from 'lowrank'
import { byId, make } from './dom.js'

export async function showLayers(name: string, adapter: LoraAdapter): Promise<void> {
  const report = await inspect(adapter)
  if (report.kind !== 'adapter') return
  const layers = [...report.layers].sort((a, b) => b.normDelta - a.normDelta)
  const rows = layers.map((layer) =>
    make(
      'tr',
      {},
      make('td', {}, layer.name),
      make('td', {}, `${layer.d} × ${layer.k}`),
      make('td', {}, String(layer.rank)),
      make('td', {}, Number.isNaN(layer.effectiveRank) ? '–' : layer.effectiveRank.toFixed(1)),
      make('td', {}, spectrum(layer)),
      make('td', {}, layer.normDelta.toPrecision(3)),
    ),
  )
  const headings = ['Layer', 'Shape', 'Rank', 'Effective rank', 'Singular values', 'Size of the change']
  const head = make('thead', {}, make('tr', {}, ...headings.map((text) => make('th', { scope: 'col' }, text))))
  byId('layers-table').replaceChildren(make('table', {}, head, make('tbody', {}, ...rows)))
  byId('layers').hidden = false
  byId('layers-state').textContent = inWords(name, report.trainableParams, layers)
}

type Layer = Spectrum & { readonly name: string; readonly rank: number; readonly normDelta: number }

function inWords(name: string, parameters: number, layers: readonly Layer[]): string {
  const [most] = layers
  if (most === undefined) return `${name} changes no layers.`
  const all = layers.reduce((sum, { normDelta }) => sum + normDelta ** 2, 0)
  let [share, count] = [0, 0]
  while (share < all / 2) share += layers[count++].normDelta ** 2
  const ranks = layers.map(({ effectiveRank }) => effectiveRank).filter((rank) => !Number.isNaN(rank))
  const mean = ranks.reduce((sum, rank) => sum + rank, 0) / ranks.length
  const used = Number.isNaN(mean)
    ? ''
    : ` On average it uses ${mean.toFixed(1)} of its ${most.rank} ranks${mean < most.rank / 2 ? ': a lower rank may be enough' : ''}.`
  return `${name}: ${parameters.toLocaleString()} trained parameters in ${layers.length} layers. Half of the change is in ${count} of them, most in ${most.name}.${used}`
}

/** Draws a bar for each singular value, the largest first. A screen reader reads the values. */
function spectrum({ singularValues }: Spectrum): Element | string {
  const [largest] = singularValues
  if (largest === undefined || largest === 0) return '–'
  const bars = singularValues.map((value, i) => {
    const height = Math.max(0.04, value / largest)
    return `M${i} 1v${-height}h0.75v${height}z`
  })
  const holder = make('div')
  holder.innerHTML = `<svg class="spectrum" viewBox="0 0 ${singularValues.length} 1" preserveAspectRatio="none" role="img"><path d="${bars.join('')}"/></svg>`
  const drawing = holder.firstElementChild as Element
  drawing.setAttribute('aria-label', singularValues.map((value) => value.toPrecision(2)).join(', '))
  return drawing
}
