// The forms of calls, and which of them a chat template asks for.

import { ConfigError, DataError } from '../../../core/base/errors.js'
import { orderedJson } from '../../../core/base/json-schema.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import type { CallForm, FunctionCall, ToolForm } from './call.js'
import { DEEPSEEK, DEEPSEEK_31 } from './deepseek.js'
import { FUNCTION_GEMMA, GEMMA_4 } from './gemma.js'
import type { FunctionTool } from './growing-text.js'
import { HARMONY } from './harmony.js'
import { HERMES } from './hermes.js'
import { GRANITE, MISTRAL, MISTRAL_11, PHI } from './lists.js'
import { LLAMA } from './llama.js'
import { LFM2, PYTHONIC } from './pythonic.js'
import { QWEN3_CODER } from './qwen3-coder.js'
import { AnswerReader } from './reader.js'

/** In the order in which a template's form is looked for: templates of later forms have no marks of earlier ones. */
export const CALL_FORMS: readonly CallForm[] = [
  ...[FUNCTION_GEMMA, GEMMA_4, LFM2, HARMONY, DEEPSEEK, DEEPSEEK_31, MISTRAL_11, MISTRAL, PHI, GRANITE],
  ...[QWEN3_CODER, HERMES, PYTHONIC, LLAMA],
]

export const callFormNamed = (name: ToolForm): CallForm => CALL_FORMS.find((form) => form.name === name)!

/** A comment in a template names its form, whatever its text says. */
export const NAMED_FORM = /\{#-? toolForm: ([\w-]+) -?#\}/

/**
 * @param texts what the template writes
 * @throws ConfigError if the template names a form that is not known
 */
export function callFormOf(template: string, ...texts: readonly string[]): { form: CallForm; isNamed: boolean } {
  const name = NAMED_FORM.exec(template)?.[1]
  const named = CALL_FORMS.find((form) => form.name === name)
  if (name !== undefined && named === undefined) {
    const expected = CALL_FORMS.map((form) => form.name).join(', ')
    throw new ConfigError({ where: 'chatTemplate', what: 'toolForm names no form of calls', expected, got: name })
  }
  const all = [template, ...texts].join('\n')
  return { form: named ?? CALL_FORMS.find(({ marks }) => marks.test(all)) ?? HERMES, isNamed: named !== undefined }
}

/** The functions among tools in OpenAI's form, or bare. */
export function functionsOf(tools: readonly unknown[] = []): FunctionTool[] {
  return tools.flatMap((tool) => {
    const described = isObject(tool) && isObject(tool.function) ? tool.function : tool
    return isObject(described) && typeof described.name === 'string' ? [described as unknown as FunctionTool] : []
  })
}

/** @throws DataError for two functions of one name */
export function uniqueFunctions(tools: readonly unknown[] | undefined, where: string): FunctionTool[] {
  const functions = functionsOf(tools)
  const twice = functions.find(({ name }, i) => functions.findIndex((other) => other.name === name) < i)
  if (twice === undefined) return functions
  throw new DataError({ where, what: `two functions are named ${twice.name}`, hint: 'Give each function its own name' })
}

/** Reads the calls of a message in OpenAI's form, with arguments as JSON or as objects. */
export function callsIn(calls: readonly unknown[]): FunctionCall[] {
  return calls.map((call) => {
    const { name, arguments: args = {} } = (isObject(call) && isObject(call.function) ? call.function : call) as Called
    const read = typeof args === 'string' ? jsonIn(args === '' ? '{}' : args) : args
    return { name: `${name}`, arguments: isObject(read) ? read : {} }
  })
}

interface Called {
  readonly name: unknown
  readonly arguments?: unknown
}

/** Reads an answer as the server does. */
export function readAnswer(form: CallForm, text: string, tools: readonly unknown[] = []) {
  const reader = new AnswerReader(form, functionsOf(tools))
  reader.end(text)
  return reader
}

/**
 * Writes the calls of an answer.
 *
 * @throws DataError if the form cannot hold them
 */
export function writeCalls(form: CallForm, calls: readonly FunctionCall[], tools: readonly unknown[], where: string) {
  const text = form.isSingle === true && calls.length > 1 ? undefined : form.write(calls)
  const read = text === undefined ? [] : callsIn(readAnswer(form, text, tools).calls)
  if (text !== undefined && orderedJson(read) === orderedJson(calls)) return text
  const what = text === undefined ? 'has one call an answer, not several' : 'cannot hold these arguments'
  const got = calls.map(({ name, arguments: args }) => `${name} ${JSON.stringify(args)}`.slice(0, 200)).join(', ')
  throw new DataError({
    where,
    what: `the form of calls ${form.name} ${what}`,
    got,
    hint: 'Change the record, or name another form in the chat template: {# toolForm: hermes #}',
  })
}
