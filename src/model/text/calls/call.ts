// What a form of calls is: how a model writes that a function is to be called, and how such a text is read while it
// grows.

import { isObject } from '../../../core/base/options.js'
import type { CallSink, GrowingText, Reading } from './growing-text.js'

/** A call of a function. */
export interface FunctionCall {
  readonly name: string
  readonly arguments: Readonly<Record<string, unknown>>
}

/** What a grammar keeps a call to: see https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html */
export interface CallTag {
  readonly begin: string
  readonly content: object
  readonly end: string
}

export interface CallForm {
  readonly name: ToolForm
  /** Found in chat templates that ask for calls in this form. */
  readonly marks: RegExp
  /** What a call, or a list of calls, may begin with. None: it begins with the answer. */
  readonly opens: readonly string[]
  /** Those of `opens` that words may begin with too. */
  readonly words?: readonly string[]
  /** Tokens that a text of calls needs although decoders leave special tokens out. */
  readonly tokens?: readonly string[]
  /** Tokens that end an answer with calls. */
  readonly ends?: readonly string[]
  /** True if an answer has one call at most. */
  readonly isSingle?: boolean
  write(calls: readonly FunctionCall[]): string
  /**
   * Reads on after `opened`. It yields when it needs more text.
   *
   * @returns false if this is not a call, so that it counts as words
   */
  read(text: GrowingText, sink: CallSink, opened: string): Reading<boolean>
  /** The keywords of schemas that its grammar holds, if these are fewer than those of JSON. */
  readonly keywords?: ReadonlySet<string>
  /** @param schema of the arguments. Undefined: any object */
  tag(name: string, schema: object | undefined): CallTag
  /** What stands before and after all calls, and between two. */
  readonly list: { readonly begin: string; readonly separator: string; readonly end: string }
}

/**
 * How a model writes calls of functions. A chat template shows it, or names it in a comment: {# toolForm: hermes #}.
 */
export type ToolForm =
  | 'hermes'
  | 'qwen3-coder'
  | 'llama'
  | 'pythonic'
  | 'mistral'
  | 'mistral-11'
  | 'function-gemma'
  | 'gemma-4'
  | 'lfm2'
  | 'granite'
  | 'phi'
  | 'harmony'
  | 'deepseek'
  | 'deepseek-31'

/** JSON with the spaces of Python's, which chat templates write. */
export function jsonText(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(jsonText).join(', ')}]`
  if (!isObject(value)) return JSON.stringify(value)
  const members = Object.entries(value).filter(([, item]) => item !== undefined)
  return `{${members.map(([key, item]) => `${JSON.stringify(key)}: ${jsonText(item)}`).join(', ')}}`
}

export const jsonTag = (schema: object = { type: 'object' }) => ({ type: 'json_schema', json_schema: schema })
