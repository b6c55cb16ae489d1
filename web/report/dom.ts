// Sections and numbers of the report page.

import { make } from '../src/elements.js'

export function section(title: string, ...content: Node[]): HTMLElement {
  return make('section', {}, make('h2', {}, title), ...content)
}

export function figure(value: string | number | null | undefined): string {
  if (typeof value === 'string') return value
  if (value === null || value === undefined) return '–'
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value)
  const size = Math.abs(value)
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2)
}
