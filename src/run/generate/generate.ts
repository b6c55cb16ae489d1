// Continues prompts with a language model: encodes them, sends them to the engine, and turns the tokens that come back
// into text.

import { attempt, UnsupportedError } from '../../core/base/errors.js'
import type { SignalLike } from '../../core/base/globals.js'
import { checkArgument, checkOptions } from '../../core/base/options.js'
import type { ImageSource } from '../../model/images/image.js'
import { type Model, requireTokenizer } from '../../model/model-folder.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import { type AdapterChoice, type Mix, mixesOf } from '../adapters/choice.js'
import { GENERATE_OPTIONS, STREAM_OPTIONS } from '../gen/options.js'
import type { WholeSession } from '../graphs.js'
import type { AdapterSession, GenerateOptions, GenerateResult, Prompt, StreamOptions, TokenScore } from '../session.js'
import type { EncodedPrompt } from './messages.js'
import { encodePrompt, imagesOf, isPrompt, PROMPT, PROMPTS } from './prompts.js'
import type { TextCall, TextRequest, WrittenToken } from './running-text.js'
import type { TextBounds } from './running-texts.js'
import { GENERATE_DEFAULTS, resolveSampling } from './sampling.js'
import type { TextForm } from './text-form.js'
import { textFormOf } from './text-graph.js'
import { type TextLimits, TextRow } from './text-row.js'

export interface TextSession extends WholeSession, Pick<AdapterSession, 'run'> {
  readonly bounds: TextBounds
  /** Messages that the engine gets only once, by name. */
  readonly told: Map<string, Promise<unknown>>
}

export async function generate<P extends Prompt | readonly Prompt[]>(
  session: TextSession,
  prompts: P,
  options: GenerateOptions = {},
): Promise<P extends Prompt ? GenerateResult : GenerateResult[]> {
  checkArgument(prompts, PROMPTS, 'prompt')
  checkOptions(options, 'generate', GENERATE_OPTIONS)
  const isOne = isPrompt(prompts)
  const { on } = options
  const images = imagesOf(options.images, isOne ? undefined : prompts.length)
  const texts = writeTexts(session, isOne ? [prompts] : prompts, images, options)
  try {
    for (;;) {
      const { value, done } = await texts.next()
      if (done) return (isOne ? value[0] : value) as never
      on?.text?.(value.piece, value.row, value.scores)
    }
  } finally {
    await texts.return([])
  }
}

/** A written text with its sampled tokens, including the token that ended it, and ln(probability) of each token. */
export interface SampledText extends GenerateResult {
  readonly promptIds: readonly number[]
  readonly sampledIds: number[]
  /** ln(probability) of each sampled token, from logits ÷ temperature, before top-p, top-k and penalties. */
  readonly sampledLogprobs: number[]
}

/** Continues each prompt. A prompt that occurs several times is read once if it is long. */
export async function sampleTexts(
  session: TextSession,
  prompts: readonly Prompt[],
  options: GenerateOptions,
): Promise<SampledText[]> {
  checkArgument(prompts, PROMPTS, 'prompts')
  const texts = writeTexts(session, prompts, imagesOf(undefined, prompts.length), options, true)
  for (;;) {
    const { value, done } = await texts.next()
    if (done) return value as SampledText[]
  }
}

export async function* streamText(
  session: TextSession,
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

async function* writeTexts(
  session: TextSession,
  prompts: readonly Prompt[],
  images: readonly ImageSource[][],
  options: GenerateOptions,
  isSampled = false,
): AsyncGenerator<{ row: number; piece: string; scores: TokenScore[] }, GenerateResult[], undefined> {
  const startedAt = performance.now()
  const { model, decodeImage } = session
  const { signal, batchSize = Math.min(GENERATE_DEFAULTS.batchSize, session.bounds.maxBatch) } = options
  const mixes = mixesOf(options.adapter as AdapterChoice | readonly AdapterChoice[], prompts.length)
  session.checkMixes(mixes)
  const form = await openTexts(session)
  if (form.embedding === undefined && images.some(({ length }) => length > 0)) {
    throw (await import('../../model/pictures/picture-places.js')).readsNoPictures(model)
  }
  const isAlike = mixes.length === 1 && images.every(({ length }) => length === 0)
  const encoded: EncodedPrompt[] = []
  for (const [i, prompt] of prompts.entries()) {
    signal?.throwIfAborted()
    // Texts with the same prompt share this array, by which the engine sees that the prompts are equal.
    const before = isAlike ? prompts.indexOf(prompt) : i
    if (before < i) {
      encoded.push(encoded[before])
      continue
    }
    const where = prompts.length === 1 ? 'prompt' : `prompt ${i + 1}`
    const mix = mixes[i] ?? mixes[0]
    const see = (feeds: Feeds) => session.runGraph('vision_encoder', feeds, [mix])
    const code = form.embedding && (await import('../../model/pictures/pictures.js'))
    const pictures = code && new code.PromptPictures({ model, decodeImage, see }, images[i], where)
    const recorded = session.chatTemplateOf(mix)
    const isSource = form.encoder !== undefined
    encoded.push(await encodePrompt(model, prompt, options, { recorded, pictures, where, isSource }))
  }
  const requests = await requestsOf(session, form, encoded, mixes, options, isSampled)
  const tokenizer = requireTokenizer(model)
  const texts = requests.map(({ limits, promptIds, seed }, i) => ({
    ...{
      row: new TextRow(limits, tokenizer.stream(promptIds, encoded[i].keptIds)),
      seed,
      promptTokens: encoded[i].ids.length,
    },
    ...{ cachedTokens: 0, scores: [] as TokenScore[], told: 0 },
    ...{ sampledIds: [] as number[], sampledLogprobs: [] as number[] },
  }))
  signal?.throwIfAborted()
  const written = new WrittenTokens(session, { texts: requests, batchSize }, signal)
  const results: GenerateResult[] = []
  try {
    for (let growing = texts.length; growing > 0; ) {
      const token = await written.next()
      signal?.throwIfAborted()
      const text = texts[token.text]
      const { row, promptTokens, seed, scores } = text
      text.cachedTokens += token.cachedTokens
      const piece = token.decoded === undefined ? row.push(token.id, token.isCut) : row.take(token.id, token.decoded)
      if (isSampled) {
        text.sampledIds.push(token.id)
        text.sampledLogprobs.push(token.scores!.chosen.logprob)
      }
      if (row.tokenIds.length > scores.length && token.scores !== undefined) scores.push(scoreOf(model, token))
      if (piece !== '') {
        yield { row: token.text, piece, scores: scores.slice(text.told) }
        text.told = scores.length
      }
      signal?.throwIfAborted()
      if (row.finish === undefined) continue
      growing--
      results[token.text] = {
        ...{ text: row.text, tokens: row.tokenIds.length, promptTokens },
        cachedTokens: text.cachedTokens,
        ...{ tokenIds: row.tokenIds, finish: row.finish, seed },
        ...(row.stop !== undefined && { stop: row.stop }),
        seconds: (performance.now() - startedAt) / 1000,
        ...(options.logprobs !== undefined && { logprobs: scores }),
        ...(isSampled && {
          ...{ promptIds: encoded[token.text].ids, sampledIds: text.sampledIds, sampledLogprobs: text.sampledLogprobs },
        }),
      }
    }
  } finally {
    written.leave()
  }
  return results
}

/** Tells the engine, once, how the model writes texts. */
function openTexts(session: TextSession): Promise<TextForm> {
  return once(session, 'form', async () => {
    const { model, engine, bounds } = session
    const form = await textFormOf(model)
    if (form.encoder === undefined && form.cache.length === 0) {
      const run = (feeds: Feeds) => session.runGraph(undefined, feeds, [[]], [form.logits])
      await (await import('./causality.js')).checkCausality(model, form, run)
    }
    await engine.openTexts(form, bounds)
    return form
  })
}

function once<T>({ told }: TextSession, name: string, tell: () => Promise<T>): Promise<T> {
  const known = (told.get(name) as Promise<T> | undefined) ?? tell()
  told.set(name, known)
  known.catch(() => told.delete(name))
  return known
}

async function requestsOf(
  session: TextSession,
  { encoder }: TextForm,
  prompts: readonly EncodedPrompt[],
  mixes: readonly Mix[],
  options: GenerateOptions,
  isSampled: boolean,
): Promise<TextRequest[]> {
  const { model, engine } = session
  // A seed of 32 bits is short enough to type again.
  const { seed = crypto.getRandomValues(new Uint32Array(1))[0] } = options
  const schema = await prepareSchema(session, options)
  const sampling = resolveSampling(options, model.generationConfig)
  const bias = Object.entries(options.logitBias ?? {}).map(([id, value]) => [Number(id), value] as const)
  const requests = prompts.map((prompt, i): TextRequest => {
    const promptIds = encoder?.startIds ?? prompt.ids
    return {
      ...{ promptIds, mix: mixes[i] ?? mixes[0], sampling, bias, schema, pictures: prompt.pictures },
      ...{ seed: seed + i, scores: isSampled ? 0 : options.logprobs, isSampled, scope: options.cacheScope ?? '' },
      limits: textLimits(model, { ...prompt, ids: promptIds }, options),
      sourceIds: encoder && prompt.ids,
    }
  })
  if (requests.some(({ limits }) => limits.stops.length > 0)) {
    await once(session, 'decoder', () => engine.setDecoder(requireTokenizer(model).decoderFiles()))
  }
  return requests
}

/** A queue of the tokens of a call, as the engine sends them. */
class WrittenTokens {
  readonly #tokens: WrittenToken[] = []
  #failure: { readonly error: unknown } | undefined
  #id: number | undefined
  #wake = () => {}

  constructor(
    private readonly session: TextSession,
    call: TextCall,
    private readonly signal: SignalLike | undefined,
  ) {
    const write = async () => {
      if (this.#failure !== undefined) return
      this.#id = lastCall++
      await session.engine.write(this.#id, call, (tokens) => {
        this.#tokens.push(...tokens)
        this.#wake()
      })
    }
    signal?.addEventListener('abort', this.#abort)
    session.tried(write).catch(this.#fail)
  }

  /** @throws the error that ended a text of the call, or the reason of the signal */
  async next(): Promise<WrittenToken> {
    while (this.#tokens.length === 0) {
      if (this.#failure !== undefined) throw this.#failure.error
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    return this.#tokens.shift()!
  }

  leave(): void {
    this.signal?.removeEventListener('abort', this.#abort)
    this.#fail(undefined)
    if (this.#id !== undefined) attempt(() => this.session.engine.leave(this.#id!)).value?.catch(() => {})
  }

  readonly #abort = () => this.#fail(this.signal?.reason)

  readonly #fail = (error: unknown) => {
    // If the session was closed, say so: the engine's own error tells less.
    const [closed] = attempt(() => this.session.engine).problems
    this.#failure ??= { error: closed ?? error }
    this.#wake()
  }
}

let lastCall = 0

async function prepareSchema(
  session: TextSession,
  { schema, structure }: GenerateOptions,
): Promise<string | undefined> {
  if (schema === undefined && structure === undefined) return undefined
  const { model, engine } = session
  const { checkedSchema, tagText } = await import('../schemas/schemas.js')
  const text = schema === undefined ? tagText(structure!) : checkedSchema(schema)
  await once(session, 'vocabulary', async () => {
    const vocabulary = model.vocabularySize && requireTokenizer(model).vocabulary(model.vocabularySize)
    if (vocabulary && model.eosTokenIds.length > 0) return engine.setVocabulary(vocabulary)
    throw new UnsupportedError({
      where: 'schema',
      what: 'texts of this model cannot be made to fit a schema',
      expected: 'a tokenizer of bytes (ByteLevel, ByteFallback or Metaspace), vocab_size and eos_token_id',
    })
  })
  await engine.prepareSchema(text)
  return text
}

function textLimits(model: Model, { ids, endIds, stops }: EncodedPrompt, options: GenerateOptions): TextLimits {
  const { stop = [], maxNewTokens = GENERATE_DEFAULTS.maxNewTokens, minNewTokens = 0 } = options
  const { ignoreEos = false, stopTokenIds = [] } = options
  const room = (model.contextLength ?? Number.POSITIVE_INFINITY) - ids.length
  return {
    endIds: new Set([...(ignoreEos ? [] : [...model.eosTokenIds, ...endIds]), ...stopTokenIds]),
    minTokens: minNewTokens,
    stops: [...[stop].flat(), ...stops],
    maxTokens: Math.min(maxNewTokens, room),
    atMost: maxNewTokens <= room ? 'max-new-tokens' : 'context',
  }
}

function scoreOf(model: Model, { scores }: WrittenToken): TokenScore {
  const tokenizer = requireTokenizer(model)
  const named = ({ id, logprob }: { id: number; logprob: number }) => {
    return { id, text: tokenizer.decode([id], { specialTokens: true }), logprob }
  }
  const { chosen, top } = scores!
  return { ...named(chosen), top: top.map(named) }
}
