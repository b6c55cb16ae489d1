// Finds and makes elements. Whatever comes from elsewhere only ever becomes text, never HTML.

export function byId<E extends HTMLElement = HTMLElement>(id: string): E {
  return document.getElementById(id) as E
}

export const inputOf = (id: string) => byId<HTMLInputElement>(id)

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Readonly<Record<string, string>> = {},
  ...inside: readonly (string | Node)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...inside)
  return element
}

export function button(
  label: string | readonly (string | Node)[],
  onClick: () => void,
  attributes: Readonly<Record<string, string>> = {},
): HTMLButtonElement {
  const element = make('button', { type: 'button', ...attributes }, ...[label].flat())
  element.addEventListener('click', onClick)
  return element
}
