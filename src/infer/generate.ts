// Text in, text out: continues a prompt token by token with a causal language model, with its key-value cache where the
// graph has one, else by running the whole text for each token.

import { ConfigError, DataError } from '../base/errors.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { type TokenInputs, tokenInputs } from '../graph/inputs/tokens.js'
import { logitsName } from '../graph/match/linears.js'
import { type Model, requireTokenizer } from '../graph/model-folder.js'
import { Graph } from '../graph/view/graph.js'
import { checkCausal } from '../tasks/causal-lm.js'
import { checkVocabulary } from '../text/records.js'
import type { AdapterSession } from './adapter-session.js'
import { GENERATE_DEFAULTS, resolveSampling, type Sampling, type SamplingOptions } from './sampling.js'

/** How a text is continued. */
export interface GenerateOptions extends SamplingOptions {
  /** Name of an adapter of the session, for the whole text. Default: the base model alone. */
  adapter?: string | undefined
  /** Default 128; the text ends at the model's context length in any case. */
  maxNewTokens?: number
  /** A safe integer; the same seed gives the same text. Default 42. */
  seed?: number
  /** Called with each piece of text as soon as it is certain. The pieces together are the result's text. */
  onText?: (piece: string) => void
  /** Ends the text between two tokens: `generate` rejects with the signal's reason. */
  signal?: AbortSignal
}

/** A continued text. */
export interface GenerateResult {
  /** What follows the prompt, without special tokens. */
  text: string
  /** Number of new tokens, the one that ended the text not counted. */
  tokens: number
  /** The new tokens. */
  tokenIds: number[]
  /** Why it ended: the model said so, maxNewTokens, or the model's context is full. */
  finish: 'eos' | 'max-new-tokens' | 'context'
  /** From the call to the end, without loading the model. */
  seconds: number
}

/**
 * Continues a prompt.
 *
 * @throws ConfigError for an option out of range, MismatchError for an unknown adapter or a tokenizer of another model, DataError for
 *   a prompt without tokens or without room behind it, UnsupportedError when the graph is no causal language model, NumericError when the
 *   logits are not finite, StateError when the session is disposed; what the signal and `onText` throw
 */
export async function generate(
  session: AdapterSession<Model>,
  prompt: string,
  options: GenerateOptions = {},
): Promise<GenerateResult> {
  const startedAt = performance.now()
  const { adapter, signal, onText } = options
  const { maxNewTokens = GENERATE_DEFAULTS.maxNewTokens, seed = GENERATE_DEFAULTS.seed } = options
  const sampling = resolveSampling(options)
  checkInteger('seed', seed, Number.MIN_SAFE_INTEGER, 'a safe integer')
  checkInteger('maxNewTokens', maxNewTokens, 1, 'an integer of 1 or more')
  session.checkAdapter(adapter)
  const { model } = session
  textGraphOf(model)
  const promptIds = encodePrompt(model, prompt)
  const room = (model.contextLength ?? Number.POSITIVE_INFINITY) - promptIds.length

  const stream = requireTokenizer(model).stream(promptIds)
  let text = ''
  const append = (piece: string) => {
    if (piece === '') return
    text += piece
    onText?.(piece)
  }
  const tokenIds: number[] = []
  let finish: GenerateResult['finish'] = maxNewTokens <= room ? 'max-new-tokens' : 'context'
  for await (const id of continuation(session, promptIds, { adapter, sampling, seed, signal })) {
    if (model.eosTokenIds.includes(id)) {
      finish = 'eos'
      break
    }
    tokenIds.push(id)
    append(stream.push(id))
    if (tokenIds.length === Math.min(maxNewTokens, room)) break
  }
  append(stream.end())
  return { text, tokens: tokenIds.length, tokenIds, finish, seconds: (performance.now() - startedAt) / 1000 }
}

/** What a text needs to know of a graph. */
interface TextGraph {
  readonly inputs: TokenInputs
  readonly logits: string
}

/** Of each graph, so that it is looked at once and not for each text. */
const textGraphs = new WeakMap<OnnxModel, TextGraph>()

/** Throws UnsupportedError when the model does not continue texts. */
function textGraphOf(model: Model): TextGraph {
  const { onnx } = model
  const known = textGraphs.get(onnx)
  if (known !== undefined) return known
  const graph = new Graph(onnx.proto)
  checkCausal(model, graph)
  const made = { inputs: tokenInputs(graph), logits: logitsName(graph) }
  textGraphs.set(onnx, made)
  return made
}

interface Draws {
  readonly adapter: string | undefined
  readonly sampling: Sampling
  readonly seed: number
  readonly signal: AbortSignal | undefined
}

/** The tokens that follow the prompt's, for as long as they are asked for. */
async function* continuation(
  session: AdapterSession<Model>,
  promptIds: readonly number[],
  { adapter, sampling, seed, signal }: Draws,
): AsyncGenerator<number, never> {
  const { inputs, logits } = textGraphOf(session.model)
  const { cache } = inputs
  const { engine } = session
  const emptyCache = inputs.emptyCache(1)
  const decoding = await engine.startDecoding({ adapter, logits, cache, emptyCache, sampling, seed })
  const tokenIds: number[] = []
  try {
    for (;;) {
      signal?.throwIfAborted()
      const id = await session.engine.nextToken(decoding, nextFeeds(inputs, promptIds, tokenIds))
      tokenIds.push(id)
      yield id
    }
  } finally {
    // An engine that has ended holds no texts.
    await engine.stopDecoding(decoding).catch(() => {})
  }
}

/** All tokens for a model without a cache and at first, afterwards the newest one. */
function nextFeeds(inputs: TokenInputs, promptIds: readonly number[], tokenIds: readonly number[]) {
  const total = promptIds.length + tokenIds.length
  const isWhole = inputs.cache.length === 0 || tokenIds.length === 0
  const inputIds = isWhole ? [...promptIds, ...tokenIds] : tokenIds.slice(-1)
  const attentionMask = new Uint8Array(total).fill(1)
  return inputs.feeds({
    batch: 1,
    sequence: inputIds.length,
    inputIds,
    attentionMask,
    past: total - inputIds.length,
  })
}

function encodePrompt(model: Model, prompt: string): number[] {
  const { eosTokenIds, contextLength, vocabularySize, name } = model
  const tokenizer = requireTokenizer(model)
  const ids = tokenizer.encode(prompt)
  const last = ids.at(-1)
  const endsText = last !== undefined && eosTokenIds.includes(last)
  // Some templates end every text; a prompt goes on.
  if (endsText && tokenizer.encode(prompt, { specialTokens: false }).at(-1) !== last) ids.pop()
  if (ids.length === 0) {
    throw new DataError({
      where: 'prompt',
      what: 'it has no tokens, and the tokenizer adds none',
      hint: 'Give at least one character',
    })
  }
  if (contextLength !== undefined && ids.length >= contextLength) {
    throw new DataError({
      where: 'prompt',
      what: `it leaves no room in the context of ${name}`,
      expected: `fewer than ${contextLength} tokens`,
      got: `${ids.length}`,
    })
  }
  checkVocabulary(ids, { tokenizer, vocabularySize })
  return ids
}

function checkInteger(where: string, value: number, minimum: number, expected: string): void {
  if (Number.isSafeInteger(value) && value >= minimum) return
  throw new ConfigError({ where, what: 'out of range', expected, got: String(value) })
}
