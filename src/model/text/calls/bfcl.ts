// Compares calls as the Berkeley Function Calling Leaderboard does, for its categories simple_python, multiple,
// parallel, parallel_multiple and irrelevance: `ast_checker` of the Python package bfcl-eval 2026.3.23.

import { isObject, jsonIn, objectOf } from '../../../core/base/options.js'
import type { FunctionCall } from './call.js'
import type { FunctionTool } from './growing-text.js'
import type { ToolCall } from './reader.js'

/** { function: { parameter: possible values } }. '' among the values: the parameter may be left out. */
export type PossibleCall = Readonly<Record<string, Readonly<Record<string, readonly unknown[]>>>>

/** A number that is written with a point or an exponent: Python's type of it is another one. */
class Float {
  constructor(readonly value: number) {}
}

type Type = 'str' | 'int' | 'float' | 'bool' | 'list' | 'dict' | 'none'

/** BFCL's names of types, and JSON Schema's. */
const TYPES: Readonly<Record<string, Type>> = {
  ...{ string: 'str', any: 'str', integer: 'int', float: 'float', number: 'float', boolean: 'bool' },
  ...{ array: 'list', tuple: 'list', dict: 'dict', object: 'dict' },
}

const NUMBER = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g
const MARK = '\u0000float'

/** Reads JSON so that 1 and 1.0 stay apart. */
function typedJson(text: string): unknown {
  const marked = text.replace(NUMBER, (token) => (/^-?\d.*[.eE]/.test(token) ? `{"\\u0000float": ${token}}` : token))
  const revive = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(revive)
    if (!isObject(value)) return value
    if (MARK in value) return new Float(value[MARK] as number)
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, revive(item)]))
  }
  return revive(jsonIn(marked))
}

/** @param text JSON, so that the types of numbers are known, or the value itself */
export function possibleCalls(text: unknown): readonly PossibleCall[] | undefined {
  const read = typedJson(typeof text === 'string' ? text : JSON.stringify(text ?? null))
  const isCall = (call: unknown) =>
    isObject(call) && Object.values(call).every(isObject) && Object.keys(call).length === 1
  return Array.isArray(read) && read.every(isCall) ? (read as PossibleCall[]) : undefined
}

/** @param answers default: the wanted calls, with these values alone */
export function fitsAnswers(
  calls: readonly ToolCall[],
  wanted: readonly FunctionCall[],
  tools: readonly FunctionTool[],
  answers: readonly PossibleCall[] = possibleCalls(wanted.map(onlyAnswer))!,
): boolean {
  const left = calls.map(({ function: { name, arguments: json } }) => ({
    name,
    args: objectOf(typedJson(json || '{}')),
  }))
  if (left.length !== answers.length) return false
  return answers.every((answer) => {
    const [[name, values]] = Object.entries(answer)
    const tool = tools.find((each) => each.name === name)
    const at = left.findIndex((call) => call.name === name && fitsOne(call.args, values, objectOf(tool?.parameters)))
    if (at >= 0) left.splice(at, 1)
    return at >= 0
  })
}

function onlyAnswer({ name, arguments: args }: FunctionCall): object {
  const each = (value: object, of: (item: unknown) => unknown) =>
    Object.fromEntries(Object.entries(value).map(([key, item]) => [key, [of(item)]]))
  const ofDict = (value: unknown) => (isObject(value) ? each(value, (item) => item) : value)
  return { [name]: each(args, (value) => (Array.isArray(value) ? value.map(ofDict) : ofDict(value))) }
}

function fitsOne(
  args: Readonly<Record<string, unknown>>,
  possible: PossibleCall[string],
  schema: Readonly<Record<string, unknown>>,
) {
  const properties = objectOf(schema.properties)
  const required = Array.isArray(schema.required) ? schema.required : []
  if (required.some((name) => !Object.hasOwn(args, name))) return false
  if (Object.keys(possible).some((name) => !Object.hasOwn(args, name) && !has(possible[name], ''))) return false
  return Object.entries(args).every(([name, value]) => {
    if (!Object.hasOwn(properties, name) || !Object.hasOwn(possible, name)) return false
    return fitsValue(value, possible[name], objectOf(properties[name]))
  })
}

function fitsValue(given: unknown, possible: readonly unknown[], { type, items }: Readonly<Record<string, unknown>>) {
  const wanted = TYPES[String(type).toLowerCase()]
  const inner = wanted === 'list' ? TYPES[String(objectOf(items).type).toLowerCase()] : undefined
  const value = wanted === 'float' && typeOf(given) === 'int' ? new Float(given as number) : given
  const { isOfType, isVariable } = checkType(value, possible, wanted, inner)
  if (!isOfType) return false
  if (!isVariable && wanted === 'dict') return possible.some((each) => each !== '' && fitsDict(objectOf(value), each))
  if (!isVariable && inner === 'dict') {
    const list = value as unknown[]
    return possible.some((each) => {
      const answers = partsOf(each)
      return answers.length === list.length && list.every((item, i) => isObject(item) && fitsDict(item, answers[i]))
    })
  }
  if (!isVariable && wanted === 'str') {
    return has(possible.filter((each) => typeof each === 'string').map(standard), standard(value))
  }
  if (!isVariable && wanted === 'list') {
    return has(
      possible.map((each) => partsOf(each).map(standard)),
      (value as unknown[]).map(standard),
    )
  }
  return has(possible, value)
}

/** A value of the answers' own type, if it is not the schema's, stands for a variable. */
function checkType(
  value: unknown,
  possible: readonly unknown[],
  wanted: Type | undefined,
  inner?: Type,
): { isOfType: boolean; isVariable: boolean } {
  const example = possible.find((each) => !same(each, ''))
  const ofAnswers = example === undefined ? undefined : typeOf(example)
  const isVariable = ofAnswers !== undefined && ofAnswers !== wanted
  if (typeOf(value) === wanted) {
    const isInner = (each: unknown) =>
      !Array.isArray(each) || (value as unknown[]).every((item) => checkType(item, each, inner).isOfType)
    return { isOfType: inner === undefined || possible.some(isInner), isVariable }
  }
  return { isOfType: ofAnswers === typeOf(value), isVariable: true }
}

function fitsDict(value: Readonly<Record<string, unknown>>, answer: unknown): boolean {
  if (!isObject(answer)) return false
  const listOf = (key: string) => partsOf(answer[key])
  const fits = ([key, item]: [string, unknown]) =>
    Object.hasOwn(answer, key) && has(listOf(key).map(standard), standard(item))
  return (
    Object.entries(value).every(fits) &&
    Object.keys(answer).every((key) => Object.hasOwn(value, key) || has(listOf(key), ''))
  )
}

/** A text counts as its letters, as in Python. */
const partsOf = (value: unknown): readonly unknown[] =>
  Array.isArray(value) ? value : typeof value === 'string' ? [...value] : []

const standard = (value: unknown) =>
  typeof value === 'string'
    ? value
        .replace(/[ ,./\-_*^]/g, '')
        .toLowerCase()
        .replaceAll("'", '"')
    : value

function typeOf(value: unknown): Type {
  if (value === null || value === undefined) return 'none'
  if (value instanceof Float) return 'float'
  if (Array.isArray(value)) return 'list'
  return ({ string: 'str', number: 'int', boolean: 'bool' } as const)[typeof value as 'string'] ?? 'dict'
}

const has = (list: readonly unknown[], value: unknown) => list.some((each) => same(each, value))

/** Python's ==: 1, 1.0 and True are equal. */
function same(a: unknown, b: unknown): boolean {
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((item, i) => same(item, b[i]))
  const [x, y] = [a, b].map((value) =>
    value instanceof Float ? value.value : typeof value === 'boolean' ? Number(value) : value,
  )
  if (!isObject(x) || !isObject(y)) return x === y
  const keys = Object.keys(x)
  return keys.length === Object.keys(y).length && keys.every((key) => Object.hasOwn(y, key) && same(x[key], y[key]))
}
