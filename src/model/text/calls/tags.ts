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

/** @returns undefined if calls of this form cannot be told from words before they end */
export function callStructure(form: CallForm, { functions, isForced, isSingle }: Bound): object | undefined {
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
  if (open === undefined) return undefined
  if (begin !== '') return { type: 'triggered_tags', triggers: [open], tags: [listed], stop_after_first: true }
  return { type: 'triggered_tags', triggers: [open], tags, stop_after_first: isOne }
}

/** The most calls of an answer without anything between them: the library has no lists with nothing in between. */
const MOST_CALLS = 8

function inARow(tags: readonly object[], most: number): object {
  const one = { type: 'or', elements: tags }
  return most === 1
    ? one
    : { type: 'or', elements: [one, { type: 'sequence', elements: [one, inARow(tags, most - 1)] }] }
}
