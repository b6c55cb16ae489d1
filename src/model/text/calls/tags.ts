// A structural tag of xgrammar that keeps the calls of an answer to the schemas of the functions.

import type { CallForm } from './call.js'
import type { FunctionTool } from './growing-text.js'

interface Bound {
  readonly functions: readonly (Omit<FunctionTool, 'parameters'> & {
    /** What the arguments must fit. Undefined: any object */
    readonly schema: object | undefined
  })[]
  /** True if the answer must be calls. */
  readonly isForced: boolean
  readonly isSingle: boolean
}

export function callStructure(form: CallForm, { functions, isForced, isSingle }: Bound): object {
  const { begin, separator, end } = form.list
  const tags = functions.map(({ name, schema }) => ({ type: 'tag', ...form.tag(name, schema) }))
  const isOne = isSingle || form.isSingle === true
  const calls =
    separator === ''
      ? inARow(tags, isOne ? 1 : MOST_CALLS)
      : { type: 'tags_with_separator', tags, separator, at_least_one: true, stop_after_first: isOne }
  const listed = { type: 'tag', begin, content: calls, end }
  if (isForced) return begin === '' ? calls : listed
  const [open] = form.opens
  if (open === undefined) return { type: 'or', elements: [begin === '' ? calls : listed, noCalls(form)] }
  // Words may come before, such as the head of harmony's message, up to the text that only calls have.
  const opened = (begin === '' ? tags : [listed]).map((tag) => {
    return { ...tag, begin: tag.begin.slice(tag.begin.indexOf(open)) }
  })
  return { type: 'triggered_tags', triggers: [open], tags: opened, stop_after_first: isOne || begin !== '' }
}

/** The library tells letters beyond ASCII apart in texts only, not in classes: here all of them are one letter. */
const BEYOND = '\u0080'

/** Any text without a call: what a call begins with is left out, letter by letter, as Aho and Corasick look for it. */
export function noCalls({ opens, words = [] }: CallForm): object {
  // The whole answer would be a call, or a list of calls.
  if (opens.length === 0)
    return { type: 'grammar', grammar: 'root ::= [ \\n]* ([^ \\n{<[] any)?\nany ::= "" | [^\\0] any' }
  const calling = opens.filter((open) => !words.includes(open)).map((open) => open.replace(/[^\0-\x7f].*/s, BEYOND))
  const starts = [...new Set(calling.flatMap((open) => [...open].map((_, i) => open.slice(0, i))))]
  const letters = [...new Set(calling.join(''))].filter((letter) => letter !== BEYOND).sort()
  const after = (start: string, letter: string) => {
    const text = start + letter
    if (calling.some((open) => text.endsWith(open))) return undefined
    return starts.filter((each) => text.endsWith(each)).reduce((a, b) => (b.length > a.length ? b : a))
  }
  const rule = (start: string) => `s${starts.indexOf(start)}`
  const code = (letter: string, step = 0) => `\\u${(letter.charCodeAt(0) + step).toString(16).padStart(4, '0')}`
  const others = ['\0', ...letters].map((from, i) => [code(from, 1), code(letters[i] ?? BEYOND, -1)] as const)
  const ranges = others.filter(([from, to]) => from <= to).map(([from, to]) => `${from}-${to}`)
  const rules = starts.map((start) => {
    const steps = letters.flatMap((letter) => {
      const next = after(start, letter)
      return next === undefined ? [] : [`"${code(letter)}" ${rule(next)}`]
    })
    if (after(start, BEYOND) !== undefined) steps.push(`[^\\u0001-\\u007f] ${rule('')}`)
    return `${rule(start)} ::= ${['""', ...steps, `[${ranges.join('')}] ${rule('')}`].join(' | ')}`
  })
  return { type: 'grammar', grammar: [`root ::= ${rule('')}`, ...rules].join('\n') }
}

/** The most calls of an answer without anything between them: the library has no lists with nothing in between. */
const MOST_CALLS = 8

function inARow(tags: readonly object[], most: number): object {
  const one = { type: 'or', elements: tags }
  return most === 1
    ? one
    : { type: 'or', elements: [one, { type: 'sequence', elements: [one, inARow(tags, most - 1)] }] }
}
