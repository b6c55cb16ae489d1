// A table that sorts by a click on a title, and can be searched by its first column.

import type { Cell } from '../../src/report/page.js'
import { figure, make } from './dom.js'

/** A table needs a search field from this number of rows on. */
const SEARCH_FROM = 12

export function table(columns: readonly string[], rows: readonly (readonly Cell[])[]): HTMLElement {
  const isText = columns.map((_, i) => rows.some((row) => typeof row[i] === 'string'))
  const lines = rows.map((cells) => {
    const line = make('tr')
    cells.forEach((cell, i) => {
      const element = make('td', isText[i] ? 'text' : '', figure(cell))
      element.title = figure(cell)
      line.append(element)
    })
    return { cells, line }
  })
  const search = make('input')
  search.type = 'search'
  search.placeholder = 'Part of a name'
  search.setAttribute('aria-label', `Show rows whose ${columns[0]} contains`)
  search.hidden = rows.length < SEARCH_FROM
  let sortedBy = -1
  let direction = 1
  const [head, body] = [make('tr'), make('tbody')]
  const place = () => {
    const shown = lines.filter(({ cells }) => figure(cells[0]).toLowerCase().includes(search.value.toLowerCase()))
    if (sortedBy >= 0) shown.sort((a, b) => direction * compare(a.cells[sortedBy], b.cells[sortedBy]))
    body.replaceChildren(...shown.map(({ line }) => line))
  }
  columns.forEach((title, i) => {
    const cell = make('th', isText[i] ? 'text' : '')
    cell.scope = 'col'
    const button = make('button', '', title)
    button.type = 'button'
    button.addEventListener('click', () => {
      // Numbers are most often read from the largest down.
      direction = sortedBy === i ? -direction : isText[i] ? 1 : -1
      sortedBy = i
      for (const sibling of head.children) sibling.removeAttribute('aria-sort')
      cell.setAttribute('aria-sort', direction < 0 ? 'descending' : 'ascending')
      place()
    })
    cell.append(button)
    head.append(cell)
  })
  search.addEventListener('input', place)
  place()
  const top = make('thead')
  top.append(head)
  const element = make('table')
  element.append(top, body)
  const frame = make('div', 'table')
  frame.append(element)
  const whole = make('div')
  whole.append(search, frame)
  return whole
}

function compare(a: Cell, b: Cell): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null)
  if (typeof a === 'number' && typeof b === 'number') return a - b
  return String(a).localeCompare(String(b), 'en', { numeric: true })
}
