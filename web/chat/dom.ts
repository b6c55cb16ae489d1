// Finds and makes elements. Whatever comes from elsewhere only ever becomes text, never HTML.

export const byId = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E
export const inputOf = (id: string) => byId<HTMLInputElement>(id)

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className: string,
  ...inside: (string | Node)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag)
  element.className = className
  element.append(...inside)
  return element
}
