// Elements by id, new elements, and the banner that shows errors.

/** The element of index.html with this id. */
export function byId<E extends HTMLElement = HTMLElement>(id: string): E {
  return document.getElementById(id) as E
}

export const inputOf = (id: string) => byId<HTMLInputElement>(id)
export const buttonOf = (id: string) => byId<HTMLButtonElement>(id)

/** A new element with text or elements inside. */
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

export function button(label: string, onClick: () => void): HTMLButtonElement {
  const element = make('button', { type: 'button' }, label)
  element.addEventListener('click', onClick)
  return element
}

/** An error with a way out of it, which its banner offers as a button. */
export class MendableError extends Error {
  readonly label: string
  readonly mend: () => Promise<void>

  constructor(cause: unknown, label: string, mend: () => Promise<void>) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
    this.label = label
    this.mend = mend
  }
}

/** Shows what went wrong above the cards. */
export function showError(title: string, error: unknown): void {
  const banner = byId('error')
  const message = error instanceof Error ? error.message : String(error)
  const buttons = [button('Close', () => clearError())]
  if (error instanceof MendableError) buttons.unshift(button(error.label, () => void guarded(title, error.mend)))
  banner.replaceChildren(make('strong', {}, title), message, make('div', { class: 'row' }, ...buttons))
  banner.hidden = false
  banner.scrollIntoView({ block: 'nearest' })
}

export function clearError(): void {
  byId('error').hidden = true
}

/** Runs what a click asks for; an error goes to the banner. */
export async function guarded(title: string, work: () => Promise<void>): Promise<void> {
  clearError()
  try {
    await work()
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') return
    showError(title, error)
  }
}
