// The script of an inspection's page. It is embedded as its own source text, so that it can use nothing from outside of itself, and
// it puts names from files into the page as text only.

import type { curvePlot } from './curves.js'
import type { PageData, PageLayer } from './data.js'

/** @param plot the source of curvePlot */
export function client(plot: typeof curvePlot): void {
  const SVG = 'http://www.w3.org/2000/svg'
  const COLORS = 8
  const BAND = 50
  const data = JSON.parse(document.getElementById('data')!.textContent!) as PageData
  const { layers, stacks } = data
  const main = document.getElementById('main')!
  const tip = document.getElementById('tip')!

  interface Measure {
    label: string
    of: (layer: PageLayer) => number | null
  }
  const all: Measure[] = [
    { label: '‖s·B·A‖', of: ({ normDelta }) => normDelta },
    { label: '‖s·B·A‖/‖W‖', of: ({ relativeChange }) => relativeChange },
    { label: 'effective rank', of: ({ effectiveRank }) => effectiveRank },
    { label: 'rank for 99 %', of: ({ rank99 }) => rank99 },
    { label: '‖A‖', of: ({ normA }) => normA },
    { label: '‖B‖', of: ({ normB }) => normB },
  ]
  const measures = all.filter(({ of }) => layers.some((layer) => of(layer) !== null))
  let measure = measures[0]
  let isRelative = false
  /** Of the measure. */
  let largest = 0
  /** Place among the layers → number of the colour. */
  const chosen = new Map<number, number>()
  const redraws: (() => void)[] = []
  const redraw = () => {
    largest = layers.reduce((result, layer) => Math.max(result, measure.of(layer) ?? 0), 0)
    for (const draw of redraws) draw()
  }

  function make<K extends keyof HTMLElementTagNameMap>(tag: K, className = '', text = ''): HTMLElementTagNameMap[K] {
    const element = document.createElement(tag)
    if (className !== '') element.className = className
    if (text !== '') element.textContent = text
    return element
  }

  function draw<K extends keyof SVGElementTagNameMap>(
    tag: K,
    attributes: Record<string, string | number>,
    text = '',
  ): SVGElementTagNameMap[K] {
    const element = document.createElementNS(SVG, tag)
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
    if (text !== '') element.textContent = text
    return element
  }

  function figure(value: number | null): string {
    if (value === null) return '–'
    if (Number.isInteger(value)) return String(value)
    return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(2) : value.toPrecision(4)
  }

  function showTip(event: PointerEvent, text: string): void {
    tip.textContent = text
    tip.hidden = false
    const { width, height } = tip.getBoundingClientRect()
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`
    tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`
  }

  function hideTip(): void {
    tip.hidden = true
  }

  function toggle(layer: number): void {
    if (!chosen.delete(layer)) {
      const used = new Set(chosen.values())
      let color = 0
      while (used.has(color)) color++
      if (color === COLORS) {
        const [oldest] = chosen.keys()
        color = chosen.get(oldest)!
        chosen.delete(oldest)
      }
      chosen.set(layer, color)
    }
    redraw()
  }

  function choices(labels: string[], current: () => number, choose: (index: number) => void): HTMLElement {
    const group = make('span', 'choices')
    const buttons = labels.map((label, i) => {
      const button = make('button', '', label)
      button.type = 'button'
      button.addEventListener('click', () => {
        choose(i)
        redraw()
      })
      group.append(button)
      return button
    })
    redraws.push(() => {
      buttons.forEach((button, i) => {
        button.setAttribute('aria-pressed', String(i === current()))
      })
    })
    return group
  }

  function drawHead(): void {
    const head = document.getElementById('head')!
    const list = make('dl')
    for (const [label, value] of data.facts) list.append(make('dt', '', label), make('dd', '', value))
    head.append(list)
    const groups: [string, string, string[]][] = [
      ['problems', 'problem', data.problems],
      ['warnings', 'warning', data.warnings],
      ['notes', 'note', data.notes],
    ]
    for (const [className, label, messages] of groups) {
      if (messages.length === 0) continue
      const items = make('ul', `messages ${className}`)
      for (const message of messages) {
        const item = make('li')
        item.append(make('b', '', `${label}: `), message)
        items.append(item)
      }
      head.append(items)
    }
  }

  /** Wide cells carry their value; many columns make narrow ones. */
  function cellWidth(columns: number): number {
    if (columns <= 14) return 58
    return Math.max(9, Math.min(30, Math.floor(960 / columns)))
  }

  function drawMaps(): void {
    const section = make('section')
    section.append(make('h2', '', 'Layers × modules'))
    const bar = make('div', 'bar')
    const labels = measures.map(({ label }) => label)
    bar.append(
      choices(
        labels,
        () => measures.indexOf(measure),
        (i) => {
          measure = measures[i]
        },
      ),
    )
    const scale = make('span', 'scale')
    const [low, high] = [make('span'), make('span')]
    scale.append(low, make('span', 'ramp'), high)
    bar.append(scale, make('span', 'hint', 'Click cells to compare their singular values.'))
    section.append(bar)
    redraws.push(() => {
      low.textContent = '0'
      high.textContent = figure(largest)
    })
    for (const stack of stacks) {
      if (stacks.length > 1) section.append(make('h3', '', stack.name === '' ? 'without a number' : stack.name))
      // Wide maps go on in further bands, as text does.
      const band = stack.columns.length > 2 * BAND ? BAND : stack.columns.length
      for (let start = 0; start < stack.columns.length; start += band) {
        const columns = stack.columns.slice(start, start + band)
        section.append(drawMap({ ...stack, columns, cells: stack.cells.map((row) => row.slice(start, start + band)) }))
      }
    }
    main.append(section)
  }

  function drawMap({ columns, rows, cells }: PageData['stacks'][number]): HTMLElement {
    const [width, height, top] = [cellWidth(columns.length), 24, columns[0] === -1 ? 0 : 18]
    const map = make('div', 'map')
    const shown = rows.map((row) => (row.length > 44 ? `…${row.slice(-43)}` : row))
    const labelWidth = Math.min(300, 16 + 6.3 * Math.max(...shown.map(({ length }) => length)))
    const names = draw('svg', { width: labelWidth, height: top + rows.length * height, 'aria-hidden': 'true' })
    shown.forEach((row, i) => {
      const place = { x: labelWidth - 8, y: top + i * height + height / 2 + 4, 'text-anchor': 'end' }
      names.append(draw('text', place, row))
    })
    const grid = draw('svg', {
      width: columns.length * width + 2,
      height: top + rows.length * height + 2,
      role: 'group',
    })
    const step = [1, 2, 5, 10, 20, 50].find((every) => every * width >= 24) ?? 100
    columns.forEach((column, j) => {
      if (column < 0 || j % step !== 0) return
      grid.append(
        draw('text', { x: (j + 0.5) * width, y: 12, 'text-anchor': 'middle', class: 'faint' }, String(column)),
      )
    })
    cells.forEach((row, i) => {
      row.forEach((index, j) => {
        if (index !== null) grid.append(...drawCell(index, j * width, top + i * height, width, height))
      })
    })
    const scroller = make('div', 'cells')
    scroller.append(grid)
    map.append(names, scroller)
    return map
  }

  function drawCell(index: number, x: number, y: number, width: number, height: number): SVGElement[] {
    const layer = layers[index]
    const size = { x: x + 1, y: y + 1, width: width - (width > 12 ? 2 : 1), height: height - 2, rx: width > 12 ? 3 : 0 }
    const cell = draw('rect', { ...size, tabindex: 0, role: 'button', 'aria-label': layer.name })
    const text =
      width >= 50 ? draw('text', { x: x + width / 2, y: y + height / 2 + 4, 'text-anchor': 'middle' }) : undefined
    cell.addEventListener('click', () => toggle(index))
    cell.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return
      event.preventDefault()
      toggle(index)
    })
    cell.addEventListener('pointermove', (event) => {
      showTip(event, `${layer.name}\n${measures.map(({ label, of }) => `${label}  ${figure(of(layer))}`).join('\n')}`)
    })
    cell.addEventListener('pointerleave', hideTip)
    redraws.push(() => {
      const value = measure.of(layer)
      const share = value === null ? 0 : value / (largest || 1)
      const [from, to] = share < 0.5 ? ['low', 'middle'] : ['middle', 'high']
      const percent = (200 * (share < 0.5 ? share : share - 0.5)).toFixed(1)
      cell.style.fill = value === null ? 'var(--none)' : `color-mix(in oklab, var(--${to}) ${percent}%, var(--${from}))`
      cell.setAttribute('class', chosen.has(index) ? 'chosen' : '')
      cell.setAttribute('aria-pressed', String(chosen.has(index)))
      if (text === undefined) return
      text.textContent = figure(value)
      text.setAttribute('class', share > 0.6 ? 'on-high' : 'on-low')
    })
    return text === undefined ? [cell] : [cell, text]
  }

  function drawPlot(): void {
    const section = make('section')
    section.append(make('h2', '', 'Singular values of s·B·A'))
    const bar = make('div', 'bar')
    bar.append(
      choices(
        ['as they are', 'relative to the largest'],
        () => Number(isRelative),
        (i) => {
          isRelative = i === 1
        },
      ),
    )
    bar.append(make('span', 'hint', 'Largest first, on a logarithmic scale.'))
    const frame = make('div', 'plot')
    const legend = make('ul', 'legend')
    section.append(bar, legend, frame)
    main.append(section)
    redraws.push(() => {
      const curves = [...chosen].map(([index, color]) => {
        return { index, color, name: layers[index].name, values: curveOf(layers[index]) }
      })
      frame.replaceChildren(
        plot(curves, figure, (event, text) => (text === undefined ? hideTip() : showTip(event, text))),
      )
      legend.replaceChildren(
        ...curves.map(({ index, color, name }) => {
          const item = make('li')
          const button = make('button')
          const swatch = make('span', 'swatch')
          swatch.style.background = `var(--c${color})`
          button.append(swatch, name)
          button.title = 'Take it out'
          button.addEventListener('click', () => toggle(index))
          item.append(button)
          return item
        }),
      )
      if (curves.length === 0) legend.append(make('li', 'hint', 'Choose layers in the map or in the table.'))
    })
  }

  function curveOf({ singularValues }: PageLayer): number[] {
    const scale = isRelative ? singularValues[0] || 1 : 1
    return singularValues.map((value) => value / scale)
  }

  interface Column {
    label: string
    of: (layer: PageLayer) => string | number | null
  }

  function tableColumns(): Column[] {
    const columns: Column[] = [
      { label: 'layer', of: ({ name }) => name },
      { label: 'kind', of: ({ kind }) => kind },
      { label: 'd', of: ({ d }) => d },
      { label: 'k', of: ({ k }) => k },
      { label: 'rank', of: ({ rank }) => rank },
      { label: 'alpha', of: ({ alpha }) => alpha },
      { label: 'scaling', of: ({ scaling }) => scaling },
      { label: 'type', of: ({ dtype }) => dtype },
      ...measures,
    ]
    const hasBase = layers.some(({ problem }) => problem !== undefined)
    return hasBase ? [...columns, { label: 'fits', of: ({ problem }) => (problem === null ? 'yes' : 'no') }] : columns
  }

  function compare(a: string | number | null, b: string | number | null): number {
    if (a === null || b === null) return Number(a === null) - Number(b === null)
    if (typeof a === 'number' && typeof b === 'number') return a - b
    return String(a).localeCompare(String(b), 'en', { numeric: true })
  }

  function drawTable(): void {
    const section = make('section')
    section.append(make('h2', '', 'All layers'))
    const search = make('input')
    search.type = 'search'
    search.placeholder = 'Part of a name'
    search.setAttribute('aria-label', 'Show layers whose name contains')
    const frame = make('div', 'table')
    const table = make('table')
    const [header, body] = [make('tr'), make('tbody')]
    const columns = tableColumns()
    const isText = columns.map(({ of }) => typeof of(layers[0]) === 'string')
    const rows = layers.map((layer, index) => {
      const row = make('tr')
      columns.forEach(({ label, of }, i) => {
        const value = of(layer)
        const className = [
          isText[i] && 'text',
          label === 'layer' && 'name',
          label === 'fits' && value === 'no' && 'bad',
        ]
        const cell = make('td', className.filter(Boolean).join(' '), typeof value === 'string' ? value : figure(value))
        if (label === 'layer') cell.title = layer.name
        if (label === 'fits') cell.title = layer.problem ?? ''
        row.append(cell)
      })
      row.addEventListener('click', () => toggle(index))
      return { layer, index, row }
    })
    let [sortedBy, isDescending] = [-1, false]
    const place = () => {
      const text = search.value.toLowerCase()
      const shown = rows.filter(({ layer }) => layer.name.toLowerCase().includes(text))
      if (sortedBy >= 0) {
        const { of } = columns[sortedBy]
        shown.sort((a, b) => compare(of(a.layer), of(b.layer)) * (isDescending ? -1 : 1))
      }
      body.replaceChildren(...shown.map(({ row }) => row))
    }
    columns.forEach(({ label }, i) => {
      const cell = make('th', isText[i] ? 'text' : '')
      cell.scope = 'col'
      const button = make('button', '', label)
      button.type = 'button'
      button.addEventListener('click', () => {
        // Numbers are most often looked at from the largest down.
        isDescending = sortedBy === i ? !isDescending : !isText[i]
        sortedBy = i
        for (const other of header.children) other.removeAttribute('aria-sort')
        cell.setAttribute('aria-sort', isDescending ? 'descending' : 'ascending')
        place()
      })
      cell.append(button)
      header.append(cell)
    })
    search.addEventListener('input', place)
    const top = make('thead')
    top.append(header)
    table.append(top, body)
    frame.append(table)
    section.append(search, frame)
    main.append(section)
    place()
    redraws.push(() => {
      for (const { index, row } of rows) {
        row.className = chosen.has(index) ? 'chosen' : ''
        row.style.setProperty('--own', `var(--c${chosen.get(index) ?? 0})`)
      }
    })
  }

  drawHead()
  if (layers.length > 0) {
    drawMaps()
    drawPlot()
    drawTable()
    const byNorm = [...layers.keys()].filter((i) => layers[i].normDelta !== null)
    byNorm.sort((a, b) => layers[b].normDelta! - layers[a].normDelta!)
    for (const index of [byNorm[0], byNorm[byNorm.length >> 1], byNorm[byNorm.length - 1]]) {
      if (index !== undefined && !chosen.has(index)) chosen.set(index, chosen.size)
    }
    redraw()
  }
}
