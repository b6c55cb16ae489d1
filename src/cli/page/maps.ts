// The heat maps, layers × modules. Embedded as its own source text.

import type { Stack } from './stacks.js'
import type { View } from './view.js'

export function drawMaps(view: View): void {
  const { data, measures, chosen, make, draw, figure } = view
  const { layers, stacks } = data
  const ROW_HEIGHT = 24
  /** Columns of a band of a wide map. */
  const BAND = 50

  interface Box {
    x: number
    y: number
    width: number
    height: number
  }

  function drawBar(): HTMLElement {
    const bar = make('div', 'bar')
    const choose = (i: number) => {
      view.measure = measures[i]
    }
    const labels = measures.map(({ label }) => label)
    bar.append(view.choices(labels, () => measures.indexOf(view.measure), choose))
    const scale = make('span', 'scale')
    const [low, high] = [make('span', '', '0'), make('span')]
    scale.append(low, make('span', 'ramp'), high)
    bar.append(scale, make('span', 'hint', 'Click cells to compare their singular values.'))
    view.onRedraw(() => {
      high.textContent = figure(view.largest)
    })
    return bar
  }

  /** Wide maps go on in further bands, as text does. */
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

  /** Wide cells carry their value; many columns make narrow ones. */
  function cellWidth(columns: number): number {
    if (columns <= 14) return 58
    return Math.max(9, Math.min(30, Math.floor(960 / columns)))
  }

  function drawMap({ columns, rows, cells }: Stack): HTMLElement {
    const width = cellWidth(columns.length)
    const top = columns[0] === -1 ? 0 : 18
    const grid = draw('svg', {
      width: columns.length * width + 2,
      height: top + rows.length * ROW_HEIGHT + 2,
      role: 'group',
    })
    const step = [1, 2, 5, 10, 20, 50].find((every) => every * width >= 24) ?? 100
    columns.forEach((column, j) => {
      if (column < 0 || j % step !== 0) return
      const place = { x: (j + 0.5) * width, y: 12, 'text-anchor': 'middle', class: 'faint' }
      grid.append(draw('text', place, String(column)))
    })
    cells.forEach((row, i) => {
      row.forEach((index, j) => {
        const box = { x: j * width, y: top + i * ROW_HEIGHT, width, height: ROW_HEIGHT }
        if (index !== null) grid.append(...drawCell(index, box))
      })
    })
    const scroller = make('div', 'cells')
    scroller.append(grid)
    const map = make('div', 'map')
    map.append(drawRowNames(rows, top), scroller)
    return map
  }

  function drawRowNames(rows: string[], top: number): SVGElement {
    const shown = rows.map((row) => (row.length > 44 ? `…${row.slice(-43)}` : row))
    const width = Math.min(300, 16 + 6.3 * Math.max(...shown.map(({ length }) => length)))
    const names = draw('svg', { width, height: top + rows.length * ROW_HEIGHT, 'aria-hidden': 'true' })
    shown.forEach((row, i) => {
      const place = { x: width - 8, y: top + i * ROW_HEIGHT + ROW_HEIGHT / 2 + 4, 'text-anchor': 'end' }
      names.append(draw('text', place, row))
    })
    return names
  }

  function drawCell(index: number, { x, y, width, height }: Box): SVGElement[] {
    const layer = layers[index]
    const size = { x: x + 1, y: y + 1, width: width - (width > 12 ? 2 : 1), height: height - 2, rx: width > 12 ? 3 : 0 }
    const cell = draw('rect', { ...size, tabindex: 0, role: 'button', 'aria-label': layer.name })
    const text =
      width >= 50 ? draw('text', { x: x + width / 2, y: y + height / 2 + 4, 'text-anchor': 'middle' }) : undefined
    cell.addEventListener('click', () => view.toggle(index))
    cell.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return
      event.preventDefault()
      view.toggle(index)
    })
    cell.addEventListener('pointermove', (event) => {
      const lines = measures.map(({ label, of }) => `${label}  ${figure(of(layer))}`)
      view.showTip(event, `${layer.name}\n${lines.join('\n')}`)
    })
    cell.addEventListener('pointerleave', view.hideTip)
    view.onRedraw(() => {
      const value = view.measure.of(layer)
      const share = value === null ? 0 : value / (view.largest || 1)
      cell.style.fill = value === null ? 'var(--none)' : colorOf(share)
      cell.setAttribute('class', chosen.has(index) ? 'chosen' : '')
      cell.setAttribute('aria-pressed', String(chosen.has(index)))
      if (text === undefined) return
      text.textContent = figure(value)
      text.setAttribute('class', share > 0.6 ? 'on-high' : 'on-low')
    })
    return text === undefined ? [cell] : [cell, text]
  }

  /** @param share of the largest value, 0 to 1 */
  function colorOf(share: number): string {
    const [from, to] = share < 0.5 ? ['low', 'middle'] : ['middle', 'high']
    const percent = (200 * (share < 0.5 ? share : share - 0.5)).toFixed(1)
    return `color-mix(in oklab, var(--${to}) ${percent}%, var(--${from}))`
  }

  const section = make('section')
  section.append(make('h2', '', 'Layers × modules'), drawBar())
  for (const stack of stacks) {
    if (stacks.length > 1) section.append(make('h3', '', stack.name === '' ? 'without a number' : stack.name))
    section.append(...bandsOf(stack).map(drawMap))
  }
  view.main.append(section)
}
