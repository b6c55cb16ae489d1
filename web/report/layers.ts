// The section on layers: a heat map of layers × modules, the singular values of chosen layers, and a table.

import type { LayersSection, ReportLayer } from '../../src/report/page.js'
import { COLORS, chart } from './curves.js'
import { choices, figure, make, section } from './dom.js'
import { type Stack, stacksOf } from './stacks.js'
import { table } from './table.js'

/** Columns of a band: a wide map goes on in further bands, as text does. */
const BAND = 50
/** From this width in pixels on, a cell has room for its value. */
const ROOMY = 50

export function layersSection({ layers, columns, measures, spectra }: LayersSection): HTMLElement[] {
  const known = measures.filter(([key]) => layers.some((layer) => layer[key] !== null))
  const shown = known.length > 0 ? known : measures
  /** Index of a chosen layer → its color. */
  const chosen = new Map<number, number>()
  const redraws: (() => void)[] = []
  let measure = shown[0][0]
  let isRelative = false
  const redraw = () => {
    for (const draw of redraws) draw()
  }
  const amountOf = (layer: ReportLayer) => layer[measure] as number | null
  const largest = () => layers.reduce((most, layer) => Math.max(most, amountOf(layer) ?? 0), 0)

  /** Gives a layer a free color; with all in use, that of the layer chosen first. */
  const toggle = (layer: number) => {
    if (!chosen.delete(layer)) {
      const free = [...Array(COLORS).keys()].find((color) => ![...chosen.values()].includes(color))
      const [first] = chosen
      if (free === undefined) chosen.delete(first[0])
      chosen.set(layer, free ?? first[1])
    }
    redraw()
  }

  const cell = (index: number | null, width: number): HTMLElement => {
    if (index === null) return make('span')
    const layer = layers[index]
    const button = make('button', 'cell')
    button.type = 'button'
    button.setAttribute('aria-label', layer.name)
    button.title = [layer.name, ...shown.map(([key, title]) => `${title}  ${figure(layer[key] as number)}`)].join('\n')
    button.addEventListener('click', () => toggle(index))
    redraws.push(() => {
      const value = amountOf(layer)
      const share = value === null ? 0 : value / (largest() || 1)
      button.style.setProperty('--share', `${(100 * share).toFixed(1)}%`)
      button.classList.toggle('none', value === null)
      button.classList.toggle('high', share > 0.6)
      button.setAttribute('aria-pressed', String(chosen.has(index)))
      if (width >= ROOMY) button.textContent = figure(value)
    })
    return button
  }

  const map = ({ columns: numbers, rows, cells }: Stack): HTMLElement => {
    const width = numbers.length <= 14 ? 58 : Math.max(9, Math.min(30, Math.floor(960 / numbers.length)))
    const step = [1, 2, 5, 10, 20, 50].find((every) => every * width >= 24) ?? 100
    const grid = make('div', 'map')
    grid.style.gridTemplateColumns = `minmax(90px, max-content) repeat(${numbers.length}, ${width}px)`
    if (numbers[0] >= 0) {
      const titles = numbers.map((number, j) => make('span', 'faint', j % step === 0 ? String(number) : ''))
      grid.append(make('span'), ...titles)
    }
    rows.forEach((row, i) => {
      const name = make('span', 'row', row)
      name.title = row
      grid.append(name, ...cells[i].map((index) => cell(index, width)))
    })
    const scroller = make('div', 'scroller')
    scroller.append(grid)
    return scroller
  }

  const maps = section('Layers × modules')
  const high = make('span')
  const scale = make('span', 'scale')
  scale.append(make('span', '', '0'), make('span', 'ramp'), high)
  redraws.push(() => {
    high.textContent = figure(largest())
  })
  const bar = make('div', 'bar')
  const buttons = choices(
    shown.map(([, title]) => title),
    (i) => {
      measure = shown[i][0]
      redraw()
    },
  )
  bar.append(buttons, scale, make('span', 'hint', 'Click cells to compare their singular values.'))
  maps.append(bar)
  const stacks = stacksOf(layers.map(({ name }) => name))
  for (const stack of stacks) {
    if (stacks.length > 1) maps.append(make('h3', '', stack.name === '' ? 'without a number' : stack.name))
    maps.append(...bandsOf(stack).map(map))
  }

  const sections = [maps]
  if (layers.some(({ singularValues }) => singularValues.length > 0)) {
    const frame = make('div')
    const scales = choices(['as they are', 'relative to the largest'], (i) => {
      isRelative = i === 1
      redraw()
    })
    redraws.push(() => {
      const series = [...chosen.keys()].map((layer) => {
        const { name, singularValues } = layers[layer]
        const divisor = isRelative ? singularValues[0] || 1 : 1
        return { name, x: singularValues.map((_, i) => i + 1), y: singularValues.map((value) => value / divisor) }
      })
      if (series.length === 0) frame.replaceChildren(make('p', 'hint', 'Choose layers in the map or in the table.'))
      else frame.replaceChildren(chart(series, { x: 'index', isLogarithmic: true, colors: [...chosen.values()] }))
    })
    sections.push(section(`Singular values of ${spectra}`, scales, frame))
  }

  const titles = ['layer', ...columns.map(([, title]) => title), ...shown.map(([, title]) => title)]
  const cells = layers.map((layer) => [layer.name, ...[...columns, ...shown].map(([key]) => layer[key] as number)])
  const all = table(titles, cells, (row, index) => {
    row.addEventListener('click', () => toggle(index))
    redraws.push(() => {
      row.className = chosen.has(index) ? 'chosen' : ''
      row.style.setProperty('--own', `var(--c${chosen.get(index) ?? 0})`)
    })
  })
  sections.push(section('All layers', all))

  // Three curves to begin with: the layers that change most, in the middle, and least.
  const order = [...layers.keys()].filter((i) => amountOf(layers[i]) !== null)
  order.sort((a, b) => amountOf(layers[b])! - amountOf(layers[a])!)
  for (const i of new Set([order[0], order[order.length >> 1], order.at(-1)])) if (i !== undefined) toggle(i)
  redraw()
  return sections
}

function bandsOf(stack: Stack): Stack[] {
  const { columns, cells } = stack
  const band = columns.length > 2 * BAND ? BAND : columns.length
  const starts = Array.from({ length: Math.ceil(columns.length / band) }, (_, i) => i * band)
  return starts.map((start) => ({
    ...stack,
    columns: columns.slice(start, start + band),
    cells: cells.map((row) => row.slice(start, start + band)),
  }))
}
