// The functions that an adapter was trained with, so that prompts need not describe them. They are kept in its chat
// template, in a comment, and so get into every file that the template gets into. The template itself leaves tools out.

import { DataError } from '../../../core/base/errors.js'
import { orderedJson } from '../../../core/base/json-schema.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { functionsOf, uniqueFunctions } from './forms.js'
import type { FunctionTool } from './growing-text.js'

const KNOWN = /\{#- toolsInAdapter: (.*?) -#\}\{%- set tools = none -%\}\n?/s

/** Puts functions into a template, in place of those that it had. */
export function withKnownTools(template: string, functions: readonly FunctionTool[]): string {
  // The text of a comment must not end it.
  const json = JSON.stringify(functions).replaceAll('#}', '#\\u007d')
  return `{#- toolsInAdapter: ${json} -#}{%- set tools = none -%}\n${withoutKnownTools(template)}`
}

export const withoutKnownTools = (template: string) => template.replace(KNOWN, '')

export function knownToolsIn(template: string): readonly FunctionTool[] | undefined {
  const found = jsonIn(KNOWN.exec(template)?.[1])
  return Array.isArray(found) ? functionsOf(found) : undefined
}

/** Adds functions to those that are known. @throws DataError if one has another type than before */
export function addKnownTools(known: FunctionTool[], tools: readonly unknown[], where: string): void {
  for (const tool of uniqueFunctions(tools, where)) {
    const before = known.find(({ name }) => name === tool.name)
    if (before === undefined) known.push(tool)
    else checkSame(before, tool, where)
  }
}

/** @throws DataError for a function that the adapter does not know, or knows with another type */
export function checkKnownTools(known: readonly FunctionTool[], tools: readonly unknown[], where: string): void {
  for (const tool of uniqueFunctions(tools, where)) {
    const trained = known.find(({ name }) => name === tool.name)
    if (trained !== undefined) checkSame(trained, tool, where)
    else {
      throw new DataError({
        where,
        what: `the adapter was not trained with the function ${tool.name}, and reads no declarations`,
        expected: known.map(({ name }) => name).join(', '),
        hint: 'Leave the function out, or train with it',
      })
    }
  }
}

function checkSame(known: FunctionTool, tool: FunctionTool, where: string): void {
  const [expected, got] = [known, tool].map(({ parameters }) => orderedJson(normalSchema(parameters)))
  if (expected === got) return
  const what = `the parameters of ${tool.name} are not those that it was trained with`
  throw new DataError({ where, what, expected: expected.slice(0, 500), got: got.slice(0, 500) })
}

/** Keywords that restrict no value. Converters of schemas add and drop them. */
const NOTES = new Set([
  ...['$schema', '$id', '$comment', '$defs', 'definitions', 'title', 'description', 'default', 'examples', 'strict'],
  ...['deprecated', 'readOnly', 'writeOnly'],
])

function normalSchema(root: unknown): unknown {
  const write = (part: unknown, open: readonly unknown[]): unknown => {
    if (Array.isArray(part)) return part.map((item) => write(item, open))
    if (!isObject(part)) return part
    const ref = typeof part.$ref === 'string' ? part.$ref : undefined
    const steps = ref?.split('/').slice(1)
    const named = steps?.reduce<unknown>((place, step) => (isObject(place) ? place[step] : undefined), root)
    if (isObject(named) && !open.includes(named)) return write(named, [...open, named])
    const kept = Object.entries(part).flatMap(([key, value]): [string, unknown][] => {
      if (NOTES.has(key)) return []
      // Strict clients close objects, whose members are compared anyhow, and bound integers by what a number can hold.
      if (key === 'additionalProperties' && typeof value === 'boolean') return []
      if (Math.abs(value as number) === Number.MAX_SAFE_INTEGER) return []
      if (key === 'properties' && isObject(value)) {
        return [[key, Object.fromEntries(Object.entries(value).map(([name, of]) => [name, write(of, open)]))]]
      }
      if (key === 'const') return [['enum', [value]]]
      if (key === 'type') {
        const names = [value].flat().map((name) => `${name}`.toLowerCase())
        return [[key, names.sort()]]
      }
      if (!Array.isArray(value) || !['required', 'enum'].includes(key)) return [[key, write(value, open)]]
      return value.length === 0 ? [] : [[key, value.map(orderedJson).sort()]]
    })
    return Object.fromEntries(kept)
  }
  const whole = write(root ?? { type: 'object' }, [])
  // No parameters, and an object without properties, are the same.
  return isObject(whole) && !isObject(whole.properties) ? { ...whole, properties: {} } : whole
}
