// Text in, text out: continues a prompt token by token with a causal language model, with its key-value cache where the
// graph has one, else by running the whole text for each token.

import { DataError } from '../base/errors.js'
import {
  COUNT,
  checkArgument,
  checkOptions,
  FUNCTION,
  INTEGER,
  NAME,
  type OptionTable,
  orNull,
  SIGNAL,
  STRING,
} from '../base/options.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { type TokenInputs, tokenInputs } from '../graph/inputs/tokens.js'
import { logitsName } from '../graph/match/linears.js'
import { type Model, requireTokenizer } from '../graph/model-folder.js'
import { readGraph } from '../graph/view/read-graph.js'
import type { Remote } from '../runtime/rpc.js'
import { checkCausal } from '../tasks/causal-lm.js'
import { checkVocabulary } from '../text/records.js'
import type { InferEngine } from './engine.js'
import { GENERATE_DEFAULTS, resolveSampling, SAMPLING_KINDS, type Sampling } from './sampling.js'
import type { GenerateOptions, GenerateResult, StreamOptions } from './session.js'

/** What a text needs of a session. */
export interface TextSession {
  readonly model: Model
  readonly engine: Remote<InferEngine>
  /** Throws MismatchError unless runs can choose this adapter. */
  checkAdapter(name: string | null | undefined): void
}

const STREAM_OPTIONS: OptionTable<StreamOptions> = {
  ...SAMPLING_KINDS,
  adapter: orNull(NAME),
  maxNewTokens: COUNT,
  seed: INTEGER,
  signal: SIGNAL,
}

const GENERATE_OPTIONS: OptionTable<GenerateOptions> = { ...STREAM_OPTIONS, onText: FUNCTION }

/** See AdapterSession.generate. */
export async function generate(
  session: TextSession,
  prompt: string,
  options: GenerateOptions = {},
): Promise<GenerateResult> {
  checkOptions(options, { of: 'generate', table: GENERATE_OPTIONS })
  const { onText, ...rest } = options
  const pieces = streamText(session, prompt, rest)
  for (;;) {
    const { value, done } = await pieces.next()
    if (done) return value
    onText?.(value)
  }
}

/** See AdapterSession.stream. */
export async function* streamText(
  session: TextSession,
  prompt: string,
  options: StreamOptions = {},
): AsyncGenerator<string, GenerateResult, undefined> {
  const startedAt = performance.now()
  checkArgument(prompt, STRING, 'prompt')
  checkOptions(options, { of: 'stream', table: STREAM_OPTIONS })
  const { adapter, signal, maxNewTokens = GENERATE_DEFAULTS.maxNewTokens, seed = freshSeed() } = options
  const sampling = resolveSampling(options)
  session.checkAdapter(adapter)
  const { model } = session
  textGraphOf(model)
  const promptIds = encodePrompt(model, prompt)
  const room = (model.contextLength ?? Number.POSITIVE_INFINITY) - promptIds.length

  const decoder = requireTokenizer(model).stream(promptIds)
  const tokenIds: number[] = []
  let text = ''
  let finish: GenerateResult['finish'] = maxNewTokens <= room ? 'max-new-tokens' : 'context'
  for await (const id of continuation(session, promptIds, { adapter: adapter ?? undefined, sampling, seed, signal })) {
    if (model.eosTokenIds.includes(id)) {
      finish = 'eos'
      break
    }
    tokenIds.push(id)
    const piece = decoder.push(id)
    text += piece
    if (piece !== '') yield piece
    if (tokenIds.length === Math.min(maxNewTokens, room)) break
  }
  const rest = decoder.end()
  text += rest
  if (rest !== '') yield rest
  const seconds = (performance.now() - startedAt) / 1000
  return { text, tokens: tokenIds.length, tokenIds, finish, seed, seconds }
}

/** One that no text was drawn with before, of 32 bits: short enough to type again. */
function freshSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0]
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
  const graph = readGraph(onnx.proto)
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
  session: TextSession,
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
