// Masks e-mail addresses, phone numbers and card numbers in texts. It finds the usual forms, and no names.

import { isObject } from '../../core/base/options.js'

const EMAIL = /[\w.+-]+@[\w-]+(?:\.[\w-]+)+/g
const CARD = /\b\d(?:[ -]?\d){12,18}\b/g
const PHONE = /(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,5}\)[ .-]?)?\d{2,5}(?:[ .-]\d{2,5}){1,4}(?![\w.])|\+\d{8,15}\b/g
const PHONE_DIGITS = 7
const DATE = /^\d{4}-\d\d-\d\d$|^\d\d?[.]\d\d?[.]\d{4}$/

/** Every text in a value, masked. */
export function redact<T>(value: T): T {
  if (typeof value === 'string') return redactText(value) as T
  if (Array.isArray(value)) return value.map(redact) as T
  if (!isObject(value)) return value
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, redact(member)])) as T
}

export function redactText(text: string): string {
  return text
    .replaceAll(EMAIL, '[e-mail]')
    .replaceAll(CARD, (digits) => (isCard(digits) ? '[card]' : digits))
    .replaceAll(PHONE, (digits) => (isPhone(digits) ? '[phone]' : digits))
}

const isPhone = (text: string) => text.replaceAll(/\D/g, '').length >= PHONE_DIGITS && !DATE.test(text)

/** The check digit of card numbers (Luhn). */
function isCard(text: string): boolean {
  const digits = [...text.replaceAll(/\D/g, '')].reverse().map(Number)
  const sum = digits.reduce(
    (total, digit, i) => total + (i % 2 === 0 ? digit : digit > 4 ? 2 * digit - 9 : 2 * digit),
    0,
  )
  return sum % 10 === 0
}
