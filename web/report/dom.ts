// Small helpers of the report page.

/** An element with a class and a text. Texts from files only ever come in here, as text. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = '',
  text?: string,
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag)
  element.className = className
  if (text !== undefined) element.textContent = text
  return element
}

export function section(title: string, ...content: Node[]): HTMLElement {
  const result = make('section')
  result.append(make('h2', '', title), ...content)
  return result
}

export function figure(value: string | number | null | undefined): string {
  if (typeof value === 'string') return value
  if (value === null || value === undefined) return '–'
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value)
  const size = Math.abs(value)
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2)
}
