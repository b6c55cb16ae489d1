// The fields of bodies: one table says what each may be and does, and each route names those that it takes.
// `scripts/generate/fields.mjs` makes the table of docs/serving.md from it. Unknown fields are errors.

import { isMix, SAMPLING_OPTIONS, STREAM_OPTIONS } from '../api/parts/entry.js'
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
} from '../core/base/options.js'
import { meantBy } from '../core/base/words.js'
import { HttpError, invalid } from './http.js'

export type Fields = Readonly<Record<string, unknown>>

export interface Field extends Kind {
  readonly about: string
}

export type FieldTable = Readonly<Record<string, Field>>

export const field = (of: Kind, about: string): Field => ({ ...of, about })

/** Accepts only the values that change nothing. */
export const only = (expected: string, ...values: readonly unknown[]): Field =>
  field(
    kind(`${expected}: nothing else is done here`, (value) => values.some((known) => known === value)),
    'refused',
  )

const MIX = kind('at most 64 weights by name, such as { "a": 0.5, "b": 0.5 }', (value) => {
  return isMix(value) && Object.keys(value as object).length <= 64
})

const atMost = (most: number, { expected, accepts }: Kind): Kind =>
  kind(`${expected}, at most ${most}`, (value) => (value as { length?: number }).length! <= most && accepts(value))

/** Bounds what is stored as JSON. */
export const jsonOf = (most: number, { expected, accepts }: Kind): Kind =>
  kind(`${expected}, of at most ${most} characters of JSON`, (value) => {
    return accepts(value) && JSON.stringify(value).length <= most
  })

/** A name or a path: it stands in answers, metrics and the log. */
export const SHORT = kind(
  'a text of at most 1024 characters',
  (value) => typeof value === 'string' && value.length <= 1024,
)
export const NAMED = kind(
  'a name of 1 to 256 characters, without commas',
  (value) => SHORT.accepts(value) && /^[^,]{1,256}$/s.test(value as string),
)
const OBJECT = kind('an object', isObject)
/** OpenAI's own limit. */
const TEXTS = anyOf(STRING, atMost(2048, listOf(STRING)))
/** After each token, the growing text is compared with every stop string. */
const STOPS = anyOf(SHORT, atMost(32, listOf(SHORT)))
/** Prompts of one request, which take a single place in the queue. */
const PROMPTS = 256
const MESSAGES = 4096
const TOOLS = 128
const SCORES = ranged('an integer in [0, 20]')
const IDS = listOf(ranged('an integer of at least 0'))

const RESPONSE_FORMAT = kind(
  '{ "type": "text" }, { "type": "json_object" } or { "type": "json_schema", "json_schema": { "schema": {…} } }',
  (value) => {
    if (!isObject(value)) return false
    if (value.type === 'json_schema') return isObject(value.json_schema) && isObject(value.json_schema.schema)
    return value.type === 'text' || value.type === 'json_object'
  },
)

/** @param allowedIn the object with the mode and the tools of `allowed_tools` */
const toolChoice = (
  expected: string,
  isNamed: (value: Record<string, unknown>) => boolean,
  allowedIn: (value: Record<string, unknown>) => unknown,
): Field => {
  const isAllowed = (allowed: unknown) =>
    isObject(allowed) &&
    ['auto', 'required'].includes(allowed.mode as string) &&
    Array.isArray(allowed.tools) &&
    allowed.tools.every((tool) => isObject(tool) && isNamed(tool))
  return field(
    kind(`auto, none, required, ${expected}`, (value) => {
      if (!isObject(value)) return ['auto', 'none', 'required'].includes(value as string)
      return value.type === 'allowed_tools' ? isAllowed(allowedIn(value)) : isNamed(value)
    }),
    'whether the model may, must, or must not call a function, or which ones',
  )
}

/** OpenAI's limits. */
export const METADATA = kind(
  'an object of at most 16 texts of at most 512 characters, by names of at most 64',
  (value) => {
    if (!isObject(value) || Object.keys(value).length > 16) return false
    return Object.entries(value).every(([key, set]) => key.length <= 64 && typeof set === 'string' && set.length <= 512)
  },
)

const IGNORED: FieldTable = {
  user: field(SHORT, 'accepted, and not used'),
  metadata: field(METADATA, 'is stored with `store`; /v1/responses gives it back'),
  safety_identifier: field(SHORT, 'accepted, and not used'),
  prompt_cache_key: field(SHORT, 'accepted: requests of one API key share what was read in any case'),
}
/** OpenAI's clients, and those who have read its documentation, write the first with a hyphen too. */
const RETENTION: FieldTable = {
  prompt_cache_retention: field(
    oneOf('in_memory', 'in-memory', '24h'),
    'accepted: what was read stays while there is room',
  ),
  prompt_cache_options: field(OBJECT, 'accepted, and not used'),
}

/** Marks the routes on which a model answers. */
export const ANSWERING = field(SHORT, 'the base or an adapter. Default: the base')
const CHOICE: FieldTable = {
  model: ANSWERING,
  adapter: field(MIX, 'a mix of adapters, in the place of `model`'),
}

const SAMPLING: FieldTable = {
  ...CHOICE,
  stream: field(BOOLEAN, 'sends events while the text grows'),
  priority: field(INTEGER, 'as in vLLM, lower numbers go first; it cannot go below the key’s'),
  seed: field(INTEGER, 'the same seed gives the same text'),
  temperature: field(ranged('a number in [0, 2]'), 'how random the text is'),
  top_p: field(ranged('a number in [0, 1]'), 'draws from the likeliest tokens with this probability together'),
  top_k: field(ranged('an integer of at least -1'), 'draws from this many likeliest tokens; 0 and -1: all'),
  min_p: field(SAMPLING_OPTIONS.minP, 'draws from tokens at least this share as likely as the likeliest'),
  repetition_penalty: field(ranged('a number in [0.01, 10]'), 'divides the logits of tokens that came before'),
  frequency_penalty: field(SAMPLING_OPTIONS.frequencyPenalty, 'is taken off for each time that a token came before'),
  presence_penalty: field(SAMPLING_OPTIONS.presencePenalty, 'is taken off for tokens that came before'),
  logit_bias: field(STREAM_OPTIONS.logitBias, 'is added to the logits of tokens, by id'),
  min_tokens: field(STREAM_OPTIONS.minNewTokens, 'the fewest new tokens'),
  ignore_eos: field(BOOLEAN, 'goes on after the end token'),
  stop_token_ids: field(atMost(32, IDS), 'tokens that end the text'),
  ...IGNORED,
}

const streamOptions = (...names: readonly string[]) =>
  kind(`an object with any of ${names.join(', ')}, true or false`, (value) => {
    const isKnown = ([key, set]: [string, unknown]) => names.includes(key) && typeof set === 'boolean'
    return isObject(value) && Object.entries(value).every(isKnown)
  })

const WRITING: FieldTable = {
  ...SAMPLING,
  stream_options: field(
    streamOptions('include_usage', 'include_obfuscation'),
    '`include_usage`: a last event tells the numbers of tokens',
  ),
  stop: field(STOPS, 'texts before which the answer ends'),
  n: field(ranged('an integer in [1, 16]'), 'answers for each prompt, which is read once'),
  response_format: field(RESPONSE_FORMAT, 'JSON that fits a schema'),
}

const TEMPLATE_ARGS: FieldTable = {
  chat_template_kwargs: field(OBJECT, 'variables of the chat template, such as enable_thinking'),
}
const VERBOSITY = oneOf('low', 'medium', 'high')
const PARALLEL: FieldTable = { parallel_tool_calls: field(BOOLEAN, 'false: at most one call') }
const TIER: FieldTable = {
  service_tier: field(oneOf('auto', 'default', 'flex', 'scale', 'priority'), 'accepted: there is one, `default`'),
}

export const CHAT_FIELDS: FieldTable = {
  ...WRITING,
  messages: field(
    needed(
      kind(`a list of 1 to ${MESSAGES} messages with role and content`, (value) => {
        return Array.isArray(value) && value.length > 0 && value.length <= MESSAGES && value.every(isObject)
      }),
    ),
    'the chat',
  ),
  max_tokens: field(COUNT, 'the most new tokens'),
  max_completion_tokens: field(COUNT, 'the same, under its newer name'),
  logprobs: field(BOOLEAN, 'tells how likely each token was'),
  top_logprobs: field(SCORES, 'and how likely the likeliest tokens were'),
  tools: field(
    atMost(
      TOOLS,
      listOf(
        kind('{ type: "function", function: { name, … } }', (value) => isObject(value) && isObject(value.function)),
      ),
    ),
    'functions that the model may call. With `strict: true` the arguments fit `parameters`',
  ),
  tool_choice: toolChoice(
    '{ type: "function", function: { name } }, or { type: "allowed_tools", allowed_tools: { mode: "auto" or "required", tools: […] } }',
    ({ function: called }) => isObject(called) && typeof called.name === 'string',
    ({ allowed_tools }) => allowed_tools,
  ),
  ...PARALLEL,
  ...TEMPLATE_ARGS,
  reasoning_effort: field(SHORT, 'a variable of chat templates that read it'),
  verbosity: field(VERBOSITY, 'a variable of chat templates that read it'),
  store: field(BOOLEAN, 'keeps request and answer, with `--train`; `metadata` finds them again'),
  ...TIER,
  ...RETENTION,
  modalities: field(
    kind('["text"]: nothing else is done here', (value) => JSON.stringify(value) === '["text"]'),
    'refused',
  ),
  audio: only('nothing'),
  web_search_options: only('nothing'),
}

/** The fields of a response that its tokens depend on. */
const RESPONSE_INPUT: FieldTable = {
  ...CHOICE,
  input: field(needed(anyOf(STRING, atMost(MESSAGES, listOf(kind('an item', isObject))))), 'a text, or the whole chat'),
  instructions: field(STRING, 'the system message'),
  previous_response_id: field(SHORT, 'a stored response, after whose input and output the input comes'),
  text: field(
    kind('{ format: { type: "text", "json_object" or "json_schema", … }, verbosity }', (value) => {
      if (!isObject(value) || Object.keys(value).some((key) => key !== 'format' && key !== 'verbosity')) return false
      const { format = { type: 'text' }, verbosity } = value
      if (!isObject(format) || (![undefined, null].includes(verbosity as never) && !VERBOSITY.accepts(verbosity)))
        return false
      return format.type === 'json_schema' ? isObject(format.schema) : /^(text|json_object)$/.test(String(format.type))
    }),
    'JSON that fits a schema; `verbosity` is a variable of chat templates that read it',
  ),
  tools: field(
    atMost(
      TOOLS,
      listOf(kind('{ type: "function", name, … }', (value) => isObject(value) && value.type === 'function')),
    ),
    CHAT_FIELDS.tools.about,
  ),
  tool_choice: toolChoice(
    '{ type: "function", name }, or { type: "allowed_tools", mode: "auto" or "required", tools: […] }',
    ({ name }) => typeof name === 'string',
    (value) => value,
  ),
  ...PARALLEL,
  ...TEMPLATE_ARGS,
  reasoning: field(OBJECT, 'its `effort` is a variable of chat templates that read it'),
  truncation: field(
    oneOf('auto', 'disabled'),
    'auto: leaves early messages out if the chat is too long, but never the system’s or the last of the user',
  ),
  conversation: only('nothing'),
}

export const INPUT_TOKENS_FIELDS: FieldTable = RESPONSE_INPUT

export const RESPONSE_FIELDS: FieldTable = {
  ...SAMPLING,
  ...RESPONSE_INPUT,
  max_output_tokens: field(COUNT, 'the most new tokens'),
  store: field(BOOLEAN, 'false: the response is not kept. Default true'),
  top_logprobs: field(SCORES, 'tells how likely each token and the likeliest tokens were'),
  max_tool_calls: field(COUNT, 'accepted: it bounds calls of tools that a server runs, and this one runs none'),
  stream_options: field(streamOptions('include_obfuscation'), 'accepted, and not used'),
  ...TIER,
  ...RETENTION,
  background: only('false', false),
  include: field(
    kind('a list', (value) => Array.isArray(value)),
    '`message.output_text.logprobs` tells how likely each token was; answers have nothing else to include',
  ),
}

export const COMPLETION_FIELDS: FieldTable = {
  ...WRITING,
  prompt: field(
    needed(anyOf(STRING, atMost(PROMPTS, listOf(STRING)), IDS, atMost(PROMPTS, listOf(IDS)))),
    'texts or token ids to continue',
  ),
  max_tokens: field(ranged('an integer of at least 0'), CHAT_FIELDS.max_tokens.about),
  logprobs: field(SCORES, 'tells how likely each token and the likeliest tokens were'),
  echo: field(BOOLEAN, 'gives the prompt too, with its scores'),
  best_of: only('1', 1),
  suffix: only('an empty text', ''),
}

const NAMED_TOOLS = kind('{ name, input_schema }', (value) => isObject(value) && typeof value.name === 'string')

export const COUNT_FIELDS: FieldTable = {
  ...CHOICE,
  messages: CHAT_FIELDS.messages,
  system: field(anyOf(STRING, listOf(OBJECT)), 'the system message'),
  tools: field(atMost(TOOLS, listOf(NAMED_TOOLS)), CHAT_FIELDS.tools.about),
  tool_choice: field(
    kind('{ type: "auto", "any", "none" or "tool", … }', (value) => {
      return isObject(value) && ['auto', 'any', 'none', 'tool'].includes(value.type as string)
    }),
    CHAT_FIELDS.tool_choice.about,
  ),
  thinking: field(
    kind('{ type: "enabled", "adaptive" or "disabled", … }', (value) => {
      return isObject(value) && ['enabled', 'adaptive', 'disabled'].includes(value.type as string)
    }),
    'sets `enable_thinking` for chat templates that read it; a model that cannot think answers without',
  ),
  output_config: field(
    kind('{ format: { type: "json_schema", schema }, effort }', (value) => {
      const { format, effort, ...others } = isObject(value) ? value : { others: true }
      const isFormat = (given: unknown) => isObject(given) && given.type === 'json_schema' && isObject(given.schema)
      return Object.keys(others).length === 0 && (format == null || isFormat(format)) && SHORT.accepts(effort ?? '')
    }),
    'JSON that fits a schema; `effort` is the variable `reasoning_effort` of chat templates that read it',
  ),
  cache_control: field(OBJECT, 'accepted: requests of one API key share what was read in any case'),
}

export const MESSAGE_FIELDS: FieldTable = {
  ...COUNT_FIELDS,
  max_tokens: field(needed(COUNT), CHAT_FIELDS.max_tokens.about),
  stop_sequences: field(atMost(32, listOf(SHORT)), WRITING.stop.about),
  stream: SAMPLING.stream,
  temperature: field(ranged('a number in [0, 1]'), SAMPLING.temperature.about),
  top_p: SAMPLING.top_p,
  top_k: SAMPLING.top_k,
  metadata: IGNORED.metadata,
  service_tier: field(oneOf('auto', 'standard_only'), 'accepted, and not used'),
}

export const TOKENIZE_FIELDS: FieldTable = {
  ...CHOICE,
  prompt: field(STRING, 'a text'),
  messages: { ...CHAT_FIELDS.messages, isRequired: false },
  tools: CHAT_FIELDS.tools,
  add_special_tokens: field(BOOLEAN, 'whether a text gets the tokens that begin and end texts. Default true'),
  return_token_strs: field(BOOLEAN, 'tells the text of each token too'),
}
export const DETOKENIZE_FIELDS: FieldTable = { model: CHOICE.model, tokens: field(needed(IDS), 'token ids') }

export const RERANK_FIELDS: FieldTable = {
  model: CHOICE.model,
  query: field(needed(STRING), 'what documents are compared with'),
  documents: field(
    needed(
      atMost(
        2048,
        listOf(
          anyOf(
            STRING,
            kind('{ text }', (value) => isObject(value) && typeof value.text === 'string'),
          ),
        ),
      ),
    ),
    'texts, or objects with `text`',
  ),
  top_n: field(COUNT, 'how many of the best documents come back. Default: all'),
  return_documents: field(BOOLEAN, 'whether the texts come back. Default: true, and false for `/v2/rerank`'),
  ...IGNORED,
}
export const SCORE_FIELDS: FieldTable = {
  model: CHOICE.model,
  text_1: field(needed(TEXTS), 'a text, or as many as in `text_2`'),
  text_2: field(needed(TEXTS), 'texts that are compared with `text_1`'),
  ...IGNORED,
}

export const EMBEDDING_FIELDS: FieldTable = {
  ...CHOICE,
  input: field(needed(TEXTS), 'texts'),
  dimensions: field(COUNT, 'how many numbers of each vector are kept'),
  input_type: field(
    oneOf('query', 'document', 'passage', 'search_query', 'search_document'),
    'what the texts are for, if queries and documents have different prompts',
  ),
  encoding_format: field(oneOf('float', 'base64'), 'how vectors are written'),
  ...IGNORED,
}

export const CLASSIFY_FIELDS: FieldTable = { model: CHOICE.model, input: EMBEDDING_FIELDS.input, ...IGNORED }

/** Options of Ollama's runner and its older samplers, which change no meaning of a text here. */
const OF_RUNNER = [
  ...[
    'num_ctx',
    'num_batch',
    'num_gpu',
    'main_gpu',
    'num_thread',
    'num_keep',
    'numa',
    'low_vram',
    'f16_kv',
    'use_mmap',
  ],
  ...[
    'use_mlock',
    'logits_all',
    'vocab_only',
    'embedding_only',
    'repeat_last_n',
    'penalize_newline',
    'typical_p',
    'tfs_z',
  ],
  ...['mirostat', 'mirostat_tau', 'mirostat_eta'],
]
const UNUSED = field(
  kind('any value', () => true),
  'accepted, and not used',
)
export const OLLAMA_OPTIONS: FieldTable = {
  ...Object.fromEntries(OF_RUNNER.map((name) => [name, UNUSED])),
  ...Object.fromEntries(
    ['seed', 'temperature', 'top_p', 'top_k', 'min_p', 'frequency_penalty', 'presence_penalty'].map((name) => {
      return [name, SAMPLING[name]]
    }),
  ),
  repeat_penalty: SAMPLING.repetition_penalty,
  num_predict: field(ranged('an integer of at least -2'), CHAT_FIELDS.max_tokens.about),
  stop: WRITING.stop,
}

const PICTURES = listOf(STRING)
const OLLAMA_NAMES: FieldTable = { model: CHOICE.model, name: field(SHORT, 'the same, under its older name') }
const OLLAMA_SHARED: FieldTable = {
  ...OLLAMA_NAMES,
  options: field(OBJECT, 'sampling, stop texts and `num_predict`; settings of Ollama’s runner are not used'),
  keep_alive: field(anyOf(STRING, INTEGER), 'accepted: the model stays as long as the server runs'),
  truncate: field(BOOLEAN, 'false: a chat that is too long is an error, in the place of losing its earliest messages'),
}
const OLLAMA_WRITING: FieldTable = {
  ...OLLAMA_SHARED,
  stream: field(BOOLEAN, 'false: the answer is one object. Default true'),
  format: field(
    kind('"json" or a schema', (value) => value === '' || value === 'json' || isObject(value)),
    WRITING.response_format.about,
  ),
  think: field(anyOf(BOOLEAN, oneOf('low', 'medium', 'high')), COUNT_FIELDS.thinking.about),
  logprobs: CHAT_FIELDS.logprobs,
  top_logprobs: CHAT_FIELDS.top_logprobs,
  shift: UNUSED,
  // The AI SDK's provider writes these beside `options`.
  temperature: SAMPLING.temperature,
  top_p: SAMPLING.top_p,
  max_output_tokens: RESPONSE_FIELDS.max_output_tokens,
}
export const OLLAMA_CHAT_FIELDS: FieldTable = {
  ...OLLAMA_WRITING,
  messages: field(
    needed(atMost(MESSAGES, listOf(kind('a message with role, content, images and tool_calls', isObject)))),
    'the chat; without messages, the model is loaded',
  ),
  tools: CHAT_FIELDS.tools,
  tool_choice: CHAT_FIELDS.tool_choice,
}
export const OLLAMA_TEXT_FIELDS: FieldTable = {
  ...OLLAMA_WRITING,
  prompt: field(STRING, 'what the user says; without it, the model is loaded'),
  system: field(STRING, RESPONSE_INPUT.instructions.about),
  images: field(PICTURES, 'pictures in base64'),
  raw: field(BOOLEAN, 'continues the prompt as it is, without the chat template'),
  suffix: only('an empty text', ''),
  template: only('an empty text', ''),
  context: field(
    kind('an empty list: /api/chat takes earlier messages', (value) => Array.isArray(value) && value.length === 0),
    'refused',
  ),
}
export const OLLAMA_NAME_FIELDS: FieldTable = {
  ...OLLAMA_NAMES,
  stream: OLLAMA_WRITING.stream,
  insecure: UNUSED,
  verbose: UNUSED,
}
export const OLLAMA_EMBED_FIELDS: FieldTable = {
  ...OLLAMA_SHARED,
  input: EMBEDDING_FIELDS.input,
  dimensions: EMBEDDING_FIELDS.dimensions,
}
export const OLLAMA_EMBEDDINGS_FIELDS: FieldTable = { ...OLLAMA_SHARED, prompt: field(needed(STRING), 'a text') }

export const LOAD_FIELDS: FieldTable = {
  lora_name: field(needed(NAMED), 'the name by which requests choose the adapter'),
  lora_path: field(needed(SHORT), 'its place: a folder, or a repository of the Hub'),
}
export const UNLOAD_FIELDS: FieldTable = { lora_name: LOAD_FIELDS.lora_name }

/**
 * null stands for a field that is left out.
 *
 * @param before what stands before the names in error messages
 */
export function checkFields(body: Fields, table: FieldTable, before = ''): Fields {
  const given = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null))
  for (const name of Object.keys(given)) {
    if (Object.hasOwn(table, name)) continue
    const meant = meantBy(name, Object.keys(table))
    throw invalid(
      before + name.slice(0, 100),
      `this server has no such option${meant ? `. Did you mean ${meant}?` : ''}`,
    )
  }
  for (const [name, { expected, accepts, isRequired }] of Object.entries(table)) {
    const isMissing = given[name] === undefined
    if (isMissing ? !isRequired : accepts(given[name])) continue
    const problem = isMissing ? ' is missing' : `: not valid; expected ${expected}`
    throw new HttpError(400, before + name + problem, { param: before + name })
  }
  return given
}
