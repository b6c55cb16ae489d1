// The table of all layers. Embedded as its own source text.

import type { PageLayer } from './data.js'
import type { View } from './view.js'

export function drawTable(view: View): void {
  const { data, measures, chosen, make, figure } = view
  const { layers } = data

  type Cell = string | number | null

  interface Column {
    label: string
    of: (layer: PageLayer) => Cell
  }

  function tableColumns(): Column[] {
    const columns: Column[] = [
      { label: 'layer', of: ({ name }) => name },
      ...data.columns.map(([key, label]): Column => ({ label, of: (layer) => layer[key] as Cell })),
      ...measures,
    ]
    const hasBase = layers.some(({ problem }) => problem !== undefined)
    return hasBase ? [...columns, { label: 'fits', of: ({ problem }) => (problem === null ? 'yes' : 'no') }] : columns
  }

  function compare(a: Cell, b: Cell): number {
    if (a === null || b === null) return Number(a === null) - Number(b === null)
    if (typeof a === 'number' && typeof b === 'number') return a - b
    return String(a).localeCompare(String(b), 'en', { numeric: true })
  }

  function drawRow(layer: PageLayer, index: number): HTMLTableRowElement {
    const row = make('tr')
    columns.forEach(({ label, of }, i) => {
      const value = of(layer)
      const classNames = [isText[i] && 'text', label === 'layer' && 'name', label === 'fits' && value === 'no' && 'bad']
      const cell = make('td', classNames.filter(Boolean).join(' '), typeof value === 'string' ? value : figure(value))
      if (label === 'layer') cell.title = layer.name
      if (label === 'fits') cell.title = layer.problem ?? ''
      row.append(cell)
    })
    row.addEventListener('click', () => view.toggle(index))
    return row
  }

  function drawHeader(): HTMLTableRowElement {
    const header = make('tr')
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
        placeRows()
      })
      cell.append(button)
      header.append(cell)
    })
    return header
  }

  function placeRows(): void {
    const text = search.value.toLowerCase()
    const shown = rows.filter(({ layer }) => layer.name.toLowerCase().includes(text))
    if (sortedBy >= 0) {
      const { of } = columns[sortedBy]
      shown.sort((a, b) => compare(of(a.layer), of(b.layer)) * (isDescending ? -1 : 1))
    }
    body.replaceChildren(...shown.map(({ row }) => row))
  }

  const columns = tableColumns()
  const isText = columns.map(({ of }) => typeof of(layers[0]) === 'string')
  const rows = layers.map((layer, index) => ({ layer, row: drawRow(layer, index) }))
  /** Number of a column; −1: in the adapter's order. */
  let sortedBy = -1
  let isDescending = false
  const search = make('input')
  search.type = 'search'
  search.placeholder = 'Part of a name'
  search.setAttribute('aria-label', 'Show layers whose name contains')
  search.addEventListener('input', placeRows)
  const [table, top, body] = [make('table'), make('thead'), make('tbody')]
  top.append(drawHeader())
  table.append(top, body)
  const frame = make('div', 'table')
  frame.append(table)
  const section = make('section')
  section.append(make('h2', '', 'All layers'), search, frame)
  view.main.append(section)
  placeRows()
  view.onRedraw(() => {
    rows.forEach(({ row }, index) => {
      row.className = chosen.has(index) ? 'chosen' : ''
      row.style.setProperty('--own', `var(--c${chosen.get(index) ?? 0})`)
    })
  })
}
