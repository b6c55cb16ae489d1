// What the parts of an inspection's page draw with. Each function is embedded as its own source text, so that it uses nothing from
// outside of itself.

export function makeElement<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = '',
  text = '',
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag)
  if (className !== '') element.className = className
  if (text !== '') element.textContent = text
  return element
}

export function drawSvg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Record<string, string | number>,
  text = '',
): SVGElementTagNameMap[K] {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
  if (text !== '') element.textContent = text
  return element
}

/** A number in few digits; a dash for none. */
export function figure(value: number | null): string {
  if (value === null) return '–'
  if (Number.isInteger(value)) return String(value)
  return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(2) : value.toPrecision(4)
}
