// Checks bodies: a field that is not in its route's table, or asks for something that is not done, is an error.

import { didYouMean } from '../base/errors.js'
import {
  anyOf,
  BOOLEAN,
  COUNT,
  INTEGER,
  isObject,
  type Kind,
  kind,
  listOf,
  needed,
  oneOf,
  ranged,
  STRING,
} from '../base/options.js'
import { isMix } from '../infer/adapters/choice.js'
import { SAMPLING_OPTIONS } from '../infer/gen/options.js'
import { HttpError } from './http.js'

export type Fields = Readonly<Record<string, unknown>>
export type FieldTable = Readonly<Record<string, Kind>>

/** Accepts only the values that change nothing. */
const only = (expected: string, ...values: readonly unknown[]): Kind =>
  kind(`${expected}: nothing else is done here`, (value) => values.some((one) => one === value))

const isEmpty = kind(
  'an empty object: it is not used here',
  (value) => isObject(value) && Object.keys(value).length === 0,
)

const MIX = kind('at most 64 weights by name, such as { "a": 0.5, "b": 0.5 }', (value) => {
  return isMix(value) && Object.keys(value as object).length <= 64
})

const atMost = (most: number, { expected, accepts }: Kind): Kind =>
  kind(`${expected}, at most ${most}`, (value) => (value as { length?: number }).length! <= most && accepts(value))

/** A name or a path: it stands in answers, metrics and the log. */
const SHORT = kind('a text of at most 1024 characters', (value) => typeof value === 'string' && value.length <= 1024)
const NAMED = kind(
  'a name of 1 to 256 characters, without commas',
  (value) => SHORT.accepts(value) && /^[^,]{1,256}$/s.test(value as string),
)
/** As many as OpenAI takes. */
const TEXTS = anyOf(STRING, atMost(2048, listOf(STRING)))
/** A text is compared with each of them after every token. */
const STOPS = anyOf(SHORT, atMost(32, listOf(SHORT)))
/** Prompts of one request: it waits for one place with all of them. */
const PROMPTS = 256
const MESSAGES = 4096
const TOOLS = 128
const SCORES = ranged('an integer in [0, 20]')
const IDS = listOf(ranged('an integer of at least 0'))

const IGNORED = { user: SHORT, metadata: anyOf(isEmpty, kind('an object', isObject)), safety_identifier: SHORT }

const RESPONSE_FORMAT = kind(
  '{ "type": "text" }, { "type": "json_object" } or { "type": "json_schema", "json_schema": { "schema": {…} } }',
  (value) => {
    if (!isObject(value)) return false
    if (value.type === 'json_schema') return isObject(value.json_schema) && isObject(value.json_schema.schema)
    return value.type === 'text' || value.type === 'json_object'
  },
)

const SAMPLING: FieldTable = {
  model: SHORT,
  adapter: MIX,
  stream: BOOLEAN,
  seed: INTEGER,
  priority: INTEGER,
  temperature: SAMPLING_OPTIONS.temperature,
  top_p: ranged('a number in [0, 1]'),
  top_k: ranged('an integer of at least -1'),
  min_p: SAMPLING_OPTIONS.minP,
  repetition_penalty: ranged('a number in [0.01, 10]'),
  frequency_penalty: only('0', 0),
  presence_penalty: only('0', 0),
  logit_bias: isEmpty,
  ...IGNORED,
}

const WRITING: FieldTable = {
  ...SAMPLING,
  stream_options: kind('{ include_usage: true }', (value) => {
    return (
      isObject(value) &&
      Object.entries(value).every(([key, one]) => key === 'include_usage' && typeof one === 'boolean')
    )
  }),
  stop: STOPS,
  n: ranged('an integer in [1, 16]'),
  response_format: RESPONSE_FORMAT,
}

export const CHAT_FIELDS: FieldTable = {
  ...WRITING,
  messages: needed(
    kind(`a list of 1 to ${MESSAGES} messages with role and content`, (value) => {
      return Array.isArray(value) && value.length > 0 && value.length <= MESSAGES && value.every(isObject)
    }),
  ),
  max_tokens: COUNT,
  max_completion_tokens: COUNT,
  logprobs: BOOLEAN,
  top_logprobs: SCORES,
  tools: atMost(
    TOOLS,
    listOf(kind('{ type: "function", function: { name, … } }', (value) => isObject(value) && isObject(value.function))),
  ),
  tool_choice: oneOf('auto', 'none'),
  parallel_tool_calls: BOOLEAN,
  chat_template_kwargs: kind('an object', isObject),
  store: only('false', false),
  service_tier: only('auto', 'auto', 'default'),
}

export const RESPONSE_FIELDS: FieldTable = {
  ...SAMPLING,
  input: needed(anyOf(STRING, atMost(MESSAGES, listOf(kind('an item', isObject))))),
  instructions: STRING,
  max_output_tokens: COUNT,
  text: kind('{ format: { type: "text", "json_object" or "json_schema", … } }', (value) => {
    if (!isObject(value) || Object.keys(value).some((key) => key !== 'format')) return false
    const { format = { type: 'text' } } = value
    if (!isObject(format)) return false
    return format.type === 'json_schema' ? isObject(format.schema) : /^(text|json_object)$/.test(String(format.type))
  }),
  tools: atMost(
    TOOLS,
    listOf(kind('{ type: "function", name, … }', (value) => isObject(value) && value.type === 'function')),
  ),
  tool_choice: oneOf('auto', 'none'),
  parallel_tool_calls: BOOLEAN,
  store: only('false', false),
  background: only('false', false),
  truncation: only('disabled', 'disabled'),
  include: kind('an empty list: nothing else is done here', (value) => Array.isArray(value) && value.length === 0),
  service_tier: only('auto', 'auto', 'default'),
}

export const COMPLETION_FIELDS: FieldTable = {
  ...WRITING,
  prompt: needed(anyOf(STRING, atMost(PROMPTS, listOf(STRING)), IDS, atMost(PROMPTS, listOf(IDS)))),
  max_tokens: ranged('an integer of at least 0'),
  logprobs: SCORES,
  echo: BOOLEAN,
  best_of: only('1', 1),
  suffix: only('an empty text', ''),
}

export const EMBEDDING_FIELDS: FieldTable = {
  model: SHORT,
  adapter: MIX,
  input: needed(TEXTS),
  dimensions: COUNT,
  encoding_format: oneOf('float', 'base64'),
  ...IGNORED,
}

export const CLASSIFY_FIELDS: FieldTable = { model: SHORT, input: needed(TEXTS), ...IGNORED }

export const LOAD_FIELDS: FieldTable = { lora_name: needed(NAMED), lora_path: needed(SHORT) }
export const UNLOAD_FIELDS: FieldTable = { lora_name: needed(NAMED) }

/** null stands for a field that is left out. */
export function checkFields(body: Fields, table: FieldTable): Fields {
  const given = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null))
  for (const name of Object.keys(given)) {
    if (Object.hasOwn(table, name)) continue
    const hint = didYouMean(name, Object.keys(table)) ?? ''
    const shown = name.slice(0, 100)
    throw new HttpError(400, `${shown}: this server has no such option. ${hint}`.trim(), { param: shown })
  }
  for (const [name, { expected, accepts, isRequired }] of Object.entries(table)) {
    const isMissing = given[name] === undefined
    if (isMissing ? !isRequired : accepts(given[name])) continue
    const problem = isMissing ? ' is missing' : `: not valid; expected ${expected}`
    throw new HttpError(400, name + problem, { param: name })
  }
  return given
}
