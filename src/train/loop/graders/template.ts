// Texts of graders with places for fields: {{item.answer}}, {{sample.output_text}}, {{sample.output_json.a[0].b}}.

import { ConfigError, DataError } from '../../../core/base/errors.js'
import { jsonIn, toJson } from '../../../core/base/options.js'
import { fieldsOf } from '../../../model/text/records.js'

export interface Graded {
  readonly item: Readonly<Record<string, unknown>>
  readonly text: string
}

/** Fills in the places. Returns undefined if the sampled text is not JSON, or its JSON has no such part. */
export type Template = (graded: Graded) => string | undefined

const PLACE = /\{\{([^{}]*)\}\}/g
const PATH = /^(item|sample)((?:\.[^.[\]\s]+|\[\d+\])+)$/

/** @throws ConfigError for a placeholder `{{…}}` that graders do not have */
export function parseTemplate(text: string, where: string): Template {
  const parts: Template[] = []
  let end = 0
  for (const { 0: whole, 1: inner, index } of text.matchAll(PLACE)) {
    const plain = text.slice(end, index)
    parts.push(() => plain, placeOf(inner.trim(), where))
    end = index + whole.length
  }
  const rest = text.slice(end)
  return (graded) => {
    const filled = parts.map((part) => part(graded))
    return filled.includes(undefined) ? undefined : filled.join('') + rest
  }
}

function placeOf(path: string, where: string): Template {
  const [, root, rest = ''] = PATH.exec(path) ?? []
  const keys = [...rest.matchAll(/\.([^.[\]]+)|\[(\d+)\]/g)].map(([, name, index]) => name ?? index)
  if (root === 'item') {
    return ({ item }) => {
      const value = valueAt(item, keys)
      if (value !== undefined) return textOf(value)
      throw new DataError({ where, what: `the record has no {{${path}}}`, got: fieldsOf(item) })
    }
  }
  const [field, ...inside] = keys
  if (root === 'sample' && field === 'output_text' && inside.length === 0) return ({ text }) => text
  if (root === 'sample' && field === 'output_json') {
    return ({ text }) => {
      const value = valueAt(jsonIn(text), inside)
      return value === undefined ? undefined : textOf(value)
    }
  }
  throw new ConfigError({
    where,
    what: 'there is no such place in a grader',
    expected: '{{item.FIELD}}, {{sample.output_text}} or {{sample.output_json.FIELD}}',
    got: `{{${path}}}`,
  })
}

function valueAt(value: unknown, keys: readonly string[]): unknown {
  for (const key of keys) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined
    value = (value as Record<string, unknown>)[key]
  }
  return value
}

function textOf(value: unknown): string {
  return typeof value === 'object' ? toJson(value) : String(value)
}
