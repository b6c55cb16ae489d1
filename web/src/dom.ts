// Finds and makes elements, and shows errors in a banner, worded for the page.

import { LowrankError } from 'lowrank'

export function byId<E extends HTMLElement = HTMLElement>(id: string): E {
  return document.getElementById(id) as E
}

export const inputOf = (id: string) => byId<HTMLInputElement>(id)
export const buttonOf = (id: string) => byId<HTMLButtonElement>(id)

/** Calls `use` with picked files. Then it empties the field, so that the same files can be picked again. */
export function onFiles(id: string, use: (files: readonly File[]) => void): void {
  const field = inputOf(id)
  field.addEventListener('change', () => {
    const files = [...(field.files ?? [])]
    if (files.length > 0) use(files)
    field.value = ''
  })
}

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

export const sizeOf = (bytes: number): string =>
  bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`

export function copyButton(text: () => string): HTMLButtonElement {
  const copy = button('Copy', () => {
    void navigator.clipboard.writeText(text()).then(
      () => (copy.textContent = 'Copied'),
      () => (copy.textContent = 'Select the text, and copy it'),
    )
  })
  return copy
}

/** An error that the user can fix with a button in the banner. */
export class MendableError extends Error {
  constructor(
    cause: unknown,
    readonly label: string,
    readonly mend: () => Promise<void>,
  ) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
  }
}

/** Returns the message of an error without advice on options, flags and environment variables, which a page lacks. */
function wordsOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  if (!(error instanceof LowrankError)) return error.message
  const { where, what, expected, got, hint = '' } = error
  const isForCallers = /`|--\w|[a-z][A-Z]|[A-Z]+_[A-Z]+|\w: /.test(hint)
  const pasted = where?.replace(/^pasted\.\w+, l(ine \d+)/, 'L$1 of the text you pasted')
  const place = where === undefined ? '' : `${LABELS[where] ?? pasted}: `
  const found = got === undefined ? '' : ` Found: ${got}.`
  const advice = hint === '' || isForCallers ? '' : ` ${hint.replace(/[^.!?]$/, '$&.')}`
  return `${place}${what}${expected === undefined ? '.' : `. Expected: ${expected}.`}${found}${advice}`
}

const LABELS: Readonly<Record<string, string>> = {
  maxSteps: 'Steps',
  learningRate: 'Learning rate',
  batchSize: 'Records a step',
  maxLength: 'Most tokens a record',
  rank: 'Rank',
  maxNewTokens: 'Most new tokens',
  temperature: 'Temperature',
}

function showError(place: string, title: string, error: unknown): void {
  const banner = byId('error')
  const hide = () => {
    banner.hidden = true
  }
  const buttons = [button('Close', hide)]
  if (error instanceof MendableError) buttons.unshift(button(error.label, () => void guarded(place, title, error.mend)))
  const cause = error instanceof MendableError ? error.cause : error
  banner.replaceChildren(make('strong', {}, title), wordsOf(cause), make('div', { class: 'row' }, ...buttons))
  const card = byId(place)
  const fold = card.closest('details')
  if (fold !== null) fold.open = true
  if (card instanceof HTMLTextAreaElement) card.after(banner)
  else card.append(banner)
  banner.hidden = false
  banner.scrollIntoView({ block: 'nearest' })
}

type Choice = string | ((error: unknown) => string)

export async function guarded(place: Choice, title: Choice, work: () => Promise<void>): Promise<void> {
  byId('error').hidden = true
  try {
    await work()
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') return
    const [at, heading] = [place, title].map((choice) => (typeof choice === 'string' ? choice : choice(error)))
    showError(at, heading, error)
  }
}
