// Prompts in, texts out: continues prompts token by token with a causal language model, several in one batch, with its
// key-value cache where the graph has one, else by running the whole text for each token.

import { checkArgument, checkOptions } from '../../base/options.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { STATES_MASK } from '../../graph/inputs/encoder-decoder.js'
import { inputFamily } from '../../graph/inputs/family.js'
import { type TokenInputs, tokenInputs, VECTORS } from '../../graph/inputs/tokens.js'
import { logitsName } from '../../graph/match/linears.js'
import { type Model, requireTokenizer } from '../../graph/model-folder.js'
import { readGraph } from '../../graph/view/graph.js'
import type { ImageSource } from '../../images/image.js'
import type { Feeds } from '../../runtime/runtime.js'
import { checkCausal } from '../../tasks/causal-lm.js'
import { type AdapterChoice, type Mix, mixesOf } from '../adapters/choice.js'
import type { DecodingRequest } from '../engine.js'
import { GENERATE_OPTIONS, STREAM_OPTIONS } from '../gen/options.js'
import { requireDecoder, type WholeSession } from '../graphs.js'
import { readsNoPictures } from '../pictures/picture-places.js'
import { PromptPictures } from '../pictures/pictures.js'
import { type OpenEmbedding, openEmbedding } from '../pictures/token-vectors.js'
import type { GenerateOptions, GenerateResult, Prompt, StreamOptions, TokenScore } from '../session.js'
import { batchesOf, paddingOf } from './batching.js'
import { checkCausality } from './causality.js'
import type { NextToken, Padding } from './decoding.js'
import { type EncodedSource, encodedSource, encodeSource, readSource } from './encoder-source.js'
import { type EncodedPrompt, encodePrompt, imagesOf, isOnePrompt, PROMPT, PROMPTS } from './prompts.js'
import { GENERATE_DEFAULTS, resolveSampling } from './sampling.js'
import { TextRow } from './text-row.js'

/** See AdapterSession.generate. */
export async function generate<P extends Prompt | readonly Prompt[]>(
  session: WholeSession,
  prompts: P,
  options: GenerateOptions = {},
): Promise<P extends Prompt ? GenerateResult : GenerateResult[]> {
  checkArgument(prompts, PROMPTS, 'prompt')
  checkOptions(options, 'generate', GENERATE_OPTIONS)
  const isOne = isOnePrompt(prompts)
  const { onText } = options
  const images = imagesOf(options.images, isOne ? undefined : prompts.length)
  const texts = writeTexts(session, isOne ? [prompts] : prompts, images, options)
  for (;;) {
    const { value, done } = await texts.next()
    if (done) return (isOne ? value[0] : value) as never
    onText?.(value.piece, value.row)
  }
}

/** See AdapterSession.stream. */
export async function* streamText(
  session: WholeSession,
  prompt: Prompt,
  options: StreamOptions = {},
): AsyncGenerator<string, GenerateResult, undefined> {
  checkArgument(prompt, PROMPT, 'prompt')
  checkOptions(options, 'stream', STREAM_OPTIONS)
  const texts = writeTexts(session, [prompt], imagesOf(options.images, undefined), options)
  try {
    for (;;) {
      const { value, done } = await texts.next()
      if (done) return value[0]
      yield value.piece
    }
  } finally {
    await texts.return([])
  }
}

/** Writes all texts, and gives their pieces as they become certain. */
async function* writeTexts(
  session: WholeSession,
  prompts: readonly Prompt[],
  images: readonly ImageSource[][],
  options: GenerateOptions,
): AsyncGenerator<{ row: number; piece: string }, GenerateResult[], undefined> {
  const startedAt = performance.now()
  const { seed = freshSeed(), batchSize = GENERATE_DEFAULTS.batchSize } = options
  const isList = Array.isArray(options.adapter)
  const mixes = mixesOf(options.adapter as AdapterChoice | readonly AdapterChoice[], prompts.length)
  session.checkMixes(mixes)
  const graph = textGraphOf(session.model)
  const { padding, source, takesVectors } = graph
  if (!takesVectors && images.some(({ length }) => length > 0)) {
    throw readsNoPictures(session.model)
  }
  const embedding = takesVectors ? await openEmbedding(session.model, graph.inputs) : undefined
  if (source === undefined && graph.inputs.cache.length === 0) {
    await checkCausality(session.model, session.engine, graph)
  }
  const encoded: EncodedPrompt[] = []
  for (const [i, prompt] of prompts.entries()) {
    const where = prompts.length === 1 ? 'prompt' : `prompt ${i + 1}`
    if (source !== undefined) {
      encoded.push(encodeSource(session.model, prompt, where))
      continue
    }
    options.signal?.throwIfAborted()
    const mix = mixes[isList ? i : 0]
    const pictures = takesVectors ? new PromptPictures(session, images[i], mix, where) : undefined
    const recorded = session.chatTemplateOf(mix)
    encoded.push(await encodePrompt(session.model, prompt, options, { recorded, pictures, where }))
  }
  const results: GenerateResult[] = []
  const lengths = encoded.map(({ ids }) => ids.length)
  for (const batch of batchesOf(lengths, batchSize, padding)) {
    const texts = batch.map((i) => ({
      row: i,
      seed: seed + i,
      prompt: encoded[i],
      mix: mixes[isList ? i : 0],
    }))
    for await (const event of writeBatch(session, texts, embedding, options)) {
      if (event.piece !== '') yield event
      if (event.result !== undefined) {
        results[event.row] = { ...event.result, seconds: (performance.now() - startedAt) / 1000 }
      }
    }
  }
  return results
}

/** A text of a batch. */
interface BatchText {
  /** Its index among all prompts. */
  readonly row: number
  readonly seed: number
  readonly prompt: EncodedPrompt
  readonly mix: Mix
}

interface TextEvent {
  readonly row: number
  readonly piece: string
  /** Once, at its end. */
  readonly result?: Omit<GenerateResult, 'seconds'>
}

/** Writes the texts of one batch, which a step continues all at once. */
async function* writeBatch(
  session: WholeSession,
  texts: readonly BatchText[],
  embedding: OpenEmbedding | undefined,
  options: GenerateOptions,
): AsyncGenerator<TextEvent, void, undefined> {
  const { model, engine } = session
  const { inputs, logits, padding, source } = textGraphOf(model)
  const { signal, logprobs } = options
  const sampling = resolveSampling(options, model.generationConfig)
  const mixes = texts.map(({ mix }) => mix)
  const prompts = texts.map(({ prompt }) => (source === undefined ? prompt : { ...prompt, ids: source.startIds }))
  const rows = prompts.map((prompt) => textRow(model, prompt, options))
  const scores: TokenScore[][] = texts.map(() => [])
  const read = (feeds: Feeds) => session.runGraph('encoder', feeds, mixes)
  const encoded = texts.map(({ prompt }) => prompt)
  const vectorRows = texts.map(({ prompt: { ids, pictures }, mix }) => ({ ids, pictures, mix }))
  const vectors = embedding?.(vectorRows, padding, (...asked) => session.runGraph(...asked))
  const context = source && (await readSource(model, source, encoded, read))
  const request: DecodingRequest = {
    rows: texts.map(({ seed }, i) => ({ promptIds: prompts[i].ids, sampling, seed, scores: logprobs })),
    mixes,
    logits,
    roles: inputs.roles,
    cache: inputs.cache,
    padding,
    context,
  }
  let decoding = 0
  /** The first step, before which all prompts are read. */
  const begin = (given: Feeds | undefined) =>
    session.tried(async () => {
      if (decoding > 0) await engine.stopDecoding(decoding)
      decoding = await engine.startDecoding(request)
      return engine.nextTokens(decoding, [], given)
    })
  try {
    let ended: number[] = []
    for (let growing = rows.length; growing > 0; growing -= ended.length) {
      signal?.throwIfAborted()
      const given = await vectors?.feeds()
      const next = await (decoding === 0 ? begin(given) : session.engine.nextTokens(decoding, ended, given))
      ended = []
      for (const token of next) {
        const row = rows[token.row]
        const piece = row.push(token.id)
        if (row.finish !== 'eos' && token.scores !== undefined) scores[token.row].push(scoreOf(model, token))
        if (row.finish === undefined) {
          yield { row: texts[token.row].row, piece }
          continue
        }
        ended.push(token.row)
        yield {
          row: texts[token.row].row,
          piece,
          result: resultOf(row, texts[token.row], scores[token.row], logprobs),
        }
      }
      vectors?.push(next, ended)
    }
  } finally {
    // An engine that has ended holds no texts.
    await engine.stopDecoding(decoding).catch(() => {})
  }
}

function textRow(
  model: Model,
  { ids, endIds, stops }: EncodedPrompt,
  { stop = [], maxNewTokens = GENERATE_DEFAULTS.maxNewTokens }: GenerateOptions,
): TextRow {
  const room = (model.contextLength ?? Number.POSITIVE_INFINITY) - ids.length
  return new TextRow(requireTokenizer(model).stream(ids), {
    endIds: new Set([...model.eosTokenIds, ...endIds]),
    stops: [...stops, ...[stop].flat()],
    maxTokens: Math.min(maxNewTokens, room),
    atMost: maxNewTokens <= room ? 'max-new-tokens' : 'context',
  })
}

function scoreOf(model: Model, { scores }: NextToken): TokenScore {
  const tokenizer = requireTokenizer(model)
  const named = ({ id, logprob }: { id: number; logprob: number }) => {
    return { id, text: tokenizer.decode([id], { specialTokens: true }), logprob }
  }
  const { chosen, top } = scores!
  return { ...named(chosen), top: top.map(named) }
}

function resultOf(
  { text, tokenIds, finish }: TextRow,
  { seed, prompt }: BatchText,
  scores: TokenScore[],
  logprobs: number | undefined,
): Omit<GenerateResult, 'seconds'> {
  return {
    text,
    tokens: tokenIds.length,
    promptTokens: prompt.ids.length,
    tokenIds,
    finish: finish!,
    seed,
    ...(logprobs !== undefined && { logprobs: scores }),
  }
}

/** One that no text was drawn with before, of 32 bits: short enough to type again. */
function freshSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0]
}

/** The facts about a graph that writing texts needs. */
interface TextGraph {
  readonly inputs: TokenInputs
  readonly logits: string
  readonly padding: Padding
  /** The encoder's part, for a decoder that reads one. */
  readonly source: EncodedSource | undefined
  /** It reads the vectors of tokens, which another graph gives. */
  readonly takesVectors: boolean
}

/** Facts about each graph, so that it is looked at once and not for each text. */
const textGraphs = new WeakMap<OnnxModel, TextGraph>()

/** Throws UnsupportedError when the model does not continue texts, FileError when its decoder is missing. */
function textGraphOf(model: Model): TextGraph {
  const { onnx } = model
  const known = textGraphs.get(onnx)
  if (known !== undefined) return known
  const graph = readGraph(onnx.proto)
  requireDecoder(model)
  const source = encodedSource(model, graph)
  if (source === undefined) checkCausal(model, graph)
  const takesVectors = inputFamily(graph)?.reads === 'vectors'
  const inputs = tokenInputs(graph, takesVectors ? new Set([VECTORS]) : source?.inputs)
  // Prompts are filled up for the encoder, whose mask hides what fills them up.
  const padding = source === undefined ? paddingOf(graph, inputs) : source.inputs.has(STATES_MASK) ? 'right' : 'none'
  const made = { inputs, logits: logitsName(graph), padding, source, takesVectors } as const
  textGraphs.set(onnx, made)
  return made
}
