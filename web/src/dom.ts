// Buttons and fields of the page, and its banner of errors, worded for the page.

import { LowrankError } from 'lowrank'
import { button, byId, inputOf, make } from './elements.js'

export { button, byId, inputOf, make }

export const buttonOf = (id: string) => byId<HTMLButtonElement>(id)

/** Returns the number in a field. Throws an error with the field's label if it is not in the range of the field. */
export function numberOf(id: string): number {
  const field = inputOf(id)
  if (field.value !== '' && field.checkValidity()) return field.valueAsNumber
  throw new Error(`${field.labels![0].textContent.trim()}: ${field.validationMessage || 'not a number'}`)
}

/** Calls `use` with picked files. Then it empties the field, so that the same files can be picked again. */
export function onFiles(id: string, use: (files: readonly File[]) => void): void {
  const field = inputOf(id)
  field.addEventListener('change', () => {
    const files = [...(field.files ?? [])]
    if (files.length > 0) use(files)
    field.value = ''
  })
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
  const place = pasted === undefined ? '' : `${pasted}: `
  const found = got === undefined ? '' : ` Found: ${got}.`
  const advice = hint === '' || isForCallers ? '' : ` ${hint.replace(/[^.!?]$/, '$&.')}`
  return `${place}${what}${expected === undefined ? '.' : `. Expected: ${expected}.`}${found}${advice}`
}

export function showError(place: string, title: string, error: unknown): void {
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

export async function guarded(place: string, title: string, work: () => Promise<void>): Promise<void> {
  byId('error').hidden = true
  try {
    await work()
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') return
    showError(place, title, error)
  }
}
