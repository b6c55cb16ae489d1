// A table that sorts by a click on a title, and can be searched by its first column.

import type { Cell } from '../../src/api/report/page.js'
import { button, make } from '../src/elements.js'
import { figure } from './dom.js'

/** A table needs a search field from this number of rows on. */
const SEARCH_FROM = 12

export function table(columns: readonly string[], rows: readonly (readonly Cell[])[]): HTMLElement {
  const isText = columns.map((_, i) => rows.some((row) => typeof row[i] === 'string'))
  const classes = isText.map((is) => (is ? 'text' : ''))
  const lines = rows.map((cells) => {
    const shown = cells.map(figure)
    return { cells, line: make('tr', {}, ...shown.map((title, i) => make('td', { class: classes[i], title }, title))) }
  })
  const label = `Show rows whose ${columns[0]} contains`
  const search = make('input', { type: 'search', placeholder: 'Part of a name', 'aria-label': label })
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
    const cell = make('th', { scope: 'col', class: classes[i] })
    const sort = button(title, () => {
      // Numbers are most often read from the largest down.
      direction = sortedBy === i ? -direction : isText[i] ? 1 : -1
      sortedBy = i
      for (const sibling of head.children) sibling.removeAttribute('aria-sort')
      cell.setAttribute('aria-sort', direction < 0 ? 'descending' : 'ascending')
      place()
    })
    cell.append(sort)
    head.append(cell)
  })
  search.addEventListener('input', place)
  place()
  return make('div', {}, search, make('div', { class: 'table' }, make('table', {}, make('thead', {}, head), body)))
}

function compare(a: Cell, b: Cell): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null)
  if (typeof a === 'number' && typeof b === 'number') return a - b
  return String(a).localeCompare(String(b), 'en', { numeric: true })
}
