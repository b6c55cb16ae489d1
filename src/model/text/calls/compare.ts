// Compares the calls of an answer with those that are wanted.

import { DataError } from '../../../core/base/errors.js'
import { orderedJson, resolvePart, schemaProblem } from '../../../core/base/json-schema.js'
import { isObject, jsonIn, objectOf } from '../../../core/base/options.js'
import { fitsAnswers, type PossibleCall } from './bfcl.js'
import type { FunctionCall } from './call.js'
import { callsIn } from './forms.js'
import type { FunctionTool } from './growing-text.js'
import type { ToolCall } from './reader.js'

/** What a request is due. */
export interface WantedCalls {
  readonly tools: readonly FunctionTool[]
  readonly calls: readonly FunctionCall[]
  /** For `match: 'bfcl'`: the possible values of each argument. */
  readonly answers?: readonly PossibleCall[] | undefined
}

/**
 * `values`: numbers are equal by value and strings after NFC without spaces at both ends, defaults of the schema are
 * filled in, and the order of calls is free. `bfcl`: as the Berkeley Function Calling Leaderboard does it.
 */
export type CallMatch = 'values' | 'bfcl'

export interface CallVerdict {
  readonly isRight: boolean
  /** True if the same functions are called as often. */
  readonly hasRightFunctions: boolean
  /** For each call why it breaks its schema, or undefined. */
  readonly problems: readonly (string | undefined)[]
}

export function judgeCalls(calls: readonly ToolCall[], wanted: WantedCalls, match: CallMatch = 'values'): CallVerdict {
  const { tools, answers } = wanted
  const same = (of: (call: FunctionCall) => string) => {
    const [a, b] = [callsIn(calls), wanted.calls].map((list) => list.map(of).sort().join('\n'))
    return calls.length === wanted.calls.length && a === b
  }
  return {
    isRight:
      match === 'bfcl' ? fitsAnswers(calls, wanted.calls, tools, answers) : same((call) => normalCall(call, tools)),
    hasRightFunctions: same(({ name }) => name),
    problems: calls.map(({ function: called }) => callProblem(called.name, called.arguments, tools)),
  }
}

/** True for the same calls, in OpenAI's form, in any order. */
export function sameCalls(a: readonly unknown[], b: readonly unknown[], tools: readonly FunctionTool[] = []): boolean {
  const [first, second] = [a, b].map((calls) =>
    callsIn(calls)
      .map((call) => normalCall(call, tools))
      .sort(),
  )
  return first.join('\n') === second.join('\n')
}

/** @throws DataError for a call that no function fits */
export function checkCall(
  { name, arguments: args }: FunctionCall,
  tools: readonly FunctionTool[],
  where: string,
): void {
  const got = callProblem(name, JSON.stringify(args), tools)
  if (got === undefined) return
  const what = `its call of ${name} fits none of its tools`
  throw new DataError({ where, what, got, hint: 'Correct the call, or the tools' })
}

/** Why a call cannot be carried out: no such function, no JSON, or arguments that break the schema. */
export function callProblem(name: string, json: string, tools: readonly FunctionTool[]): string | undefined {
  const tool = tools.find((each) => each.name === name)
  if (tool === undefined) return `no function is named ${name}`
  const args = jsonIn(json === '' ? '{}' : json)
  if (!isObject(args)) return 'its arguments are no JSON object'
  return schemaProblem(args, tool.parameters)
}

function normalCall({ name, arguments: args }: FunctionCall, tools: readonly FunctionTool[]): string {
  const { parameters } = tools.find((tool) => tool.name === name) ?? {}
  return `${name} ${orderedJson(normal(args, parameters, parameters))}`
}

function normal(value: unknown, schema: unknown, root: unknown): unknown {
  if (typeof value === 'string') return value.normalize('NFC').trim()
  const part = objectOf(resolvePart(schema, root))
  if (Array.isArray(value)) return value.map((item) => normal(item, part.items, root))
  if (!isObject(value)) return value
  const properties = objectOf(part.properties)
  const defaults = Object.entries(properties).flatMap(([name, of]) => {
    const given = objectOf(resolvePart(of, root)).default
    return given === undefined ? [] : [[name, given] as const]
  })
  const filled = Object.entries({ ...Object.fromEntries(defaults), ...value })
  return Object.fromEntries(filled.map(([name, member]) => [name, normal(member, properties[name], root)]))
}
