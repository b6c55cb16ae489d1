// Continues prompts with a causal language model, several in one batch, with its key-value cache where it has one.

import { UnsupportedError } from '../../base/errors.js'
import { checkArgument, checkOptions } from '../../base/options.js'
import { type Model, requireTokenizer } from '../../graph/model-folder.js'
import type { ImageSource } from '../../images/image.js'
import type { Feeds } from '../../runtime/runtime.js'
import { type AdapterChoice, type Mix, mixesOf } from '../adapters/choice.js'
import { GENERATE_OPTIONS, STREAM_OPTIONS } from '../gen/options.js'
import type { WholeSession } from '../graphs.js'
import type { GenerateOptions, GenerateResult, Prompt, StreamOptions, TokenScore } from '../session.js'
import type { NextToken } from './decoding.js'
import type { EncodedPrompt } from './messages.js'
import { encodePrompt, imagesOf, isPrompt, PROMPT, PROMPTS } from './prompts.js'
import type { RunningText, RunningTexts, TextJob } from './running-texts.js'
import { GENERATE_DEFAULTS, resolveSampling } from './sampling.js'
import { batchesOf, type TextGraph, textGraphOf } from './text-graph.js'
import { type TextLimits, TextRow } from './text-row.js'
import type { OpenEmbedding } from './token-vectors.js'

export interface TextSession extends WholeSession {
  readonly texts: RunningTexts
  /** The code for pictures in prompts, which few models need. */
  pictureCode(): Promise<typeof import('../../tasks/pictures/pictures.js') & typeof import('./token-vectors.js')>
}

export async function generate<P extends Prompt | readonly Prompt[]>(
  session: TextSession,
  prompts: P,
  options: GenerateOptions = {},
): Promise<P extends Prompt ? GenerateResult : GenerateResult[]> {
  checkArgument(prompts, PROMPTS, 'prompt')
  checkOptions(options, 'generate', GENERATE_OPTIONS)
  const isOne = isPrompt(prompts)
  const { onText } = options
  const images = imagesOf(options.images, isOne ? undefined : prompts.length)
  const texts = writeTexts(session, isOne ? [prompts] : prompts, images, options)
  try {
    for (;;) {
      const { value, done } = await texts.next()
      if (done) return (isOne ? value[0] : value) as never
      onText?.(value.piece, value.row)
    }
  } finally {
    await texts.return([])
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
): AsyncGenerator<{ row: number; piece: string }, GenerateResult[], undefined> {
  const startedAt = performance.now()
  // 32 bits are short enough to type again.
  const { seed = crypto.getRandomValues(new Uint32Array(1))[0] } = options
  const { batchSize = Math.min(GENERATE_DEFAULTS.batchSize, session.texts.bounds.maxBatch) } = options
  const isList = Array.isArray(options.adapter)
  const mixes = mixesOf(options.adapter as AdapterChoice | readonly AdapterChoice[], prompts.length)
  session.checkMixes(mixes)
  const graph = textGraphOf(session.model)
  const { padding, source, takesVectors } = graph
  if (!takesVectors && images.some(({ length }) => length > 0)) {
    throw (await import('../../tasks/pictures/picture-places.js')).readsNoPictures(session.model)
  }
  const reading = takesVectors ? await session.pictureCode() : undefined
  const embedding = await reading?.openEmbedding(session.model, graph.inputs)
  if (source === undefined && graph.inputs.cache.length === 0) {
    await (await import('./causality.js')).checkCausality(session.model, session.engine, graph)
  }
  const sources = source && (await import('./encoder-source.js'))
  const encoded: EncodedPrompt[] = []
  for (const [i, prompt] of prompts.entries()) {
    const where = prompts.length === 1 ? 'prompt' : `prompt ${i + 1}`
    if (sources !== undefined) {
      encoded.push(sources.encodeSource(session.model, prompt, where))
      continue
    }
    options.signal?.throwIfAborted()
    const mix = mixes[isList ? i : 0]
    const { model, decodeImage } = session
    const see = (feeds: Feeds) => session.runGraph('vision_encoder', feeds, [mix])
    const pictures = reading && new reading.PromptPictures({ model, decodeImage, see }, images[i], where)
    const recorded = session.chatTemplateOf(mix)
    encoded.push(await encodePrompt(session.model, prompt, options, { recorded, pictures, where }))
  }
  const schema = options.schema && (await prepareSchema(session, options.schema))
  const events = new TextEvents()
  const sampling = resolveSampling(options, session.model.generationConfig)
  const isActivated = mixes.some((mix) => session.invocationOf(mix) !== undefined)
  const activation = isActivated ? await import('../adapters/activation.js') : undefined
  const texts = encoded.map((prompt, i): WrittenText => {
    const ids = source === undefined ? prompt.ids : source.startIds
    const own = mixes[isList ? i : 0]
    const { mix, baseTokens } = activation?.activatedMix(own, ids, session.invocationOf(own), graph.takesPieces) ?? {
      mix: own,
      baseTokens: 0,
    }
    const request = {
      promptIds: ids,
      sampling,
      seed: seed + i,
      scores: options.logprobs,
      scope: options.cacheScope ?? '',
      baseTokens,
      schema: undefined as { text: string; ends: number[] } | undefined,
    }
    const limits = textLimits(session.model, { ...prompt, ids }, options)
    if (schema !== undefined) request.schema = { text: schema, ends: [...limits.endIds] }
    return new WrittenText(session.model, request, { index: i, prompt, mix, limits, events })
  })
  const lengths = encoded.map(({ ids }) => ids.length)
  const places = graph.shares ? [...texts.keys()].map((i) => [i]) : batchesOf(lengths, batchSize, padding)
  const batches = places.map((batch) => batch.map((i) => texts[i]))
  const call = session.texts.add({
    graph,
    batchSize,
    signal: options.signal,
    jobs: batches.map((batch) => (graph.shares ? { texts: batch } : aloneJob(session, graph, embedding, batch))),
  })
  const results: GenerateResult[] = []
  try {
    for (let growing = texts.length; growing > 0; ) {
      const { row, piece, result } = await events.next()
      options.signal?.throwIfAborted()
      if (piece !== '') yield { row, piece }
      options.signal?.throwIfAborted()
      if (result === undefined) continue
      results[row] = { ...result, seconds: (performance.now() - startedAt) / 1000 }
      growing--
    }
  } finally {
    call.leave()
  }
  return results
}

interface TextEvent {
  readonly row: number
  readonly piece: string
  readonly result?: Omit<GenerateResult, 'seconds'>
}

class TextEvents {
  readonly #events: TextEvent[] = []
  #failure: { readonly error: unknown } | undefined
  #wake = () => {}

  push(event: TextEvent): void {
    this.#events.push(event)
    this.#wake()
  }

  fail(error: unknown): void {
    this.#failure ??= { error }
    this.#wake()
  }

  async next(): Promise<TextEvent> {
    for (;;) {
      const event = this.#events.shift()
      if (event !== undefined) return event
      if (this.#failure !== undefined) throw this.#failure.error
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }
}

interface TextPlace {
  readonly index: number
  readonly prompt: EncodedPrompt
  readonly mix: Mix
  readonly limits: TextLimits
  readonly events: TextEvents
}

class WrittenText implements RunningText {
  readonly mostTokens: number
  readonly #row: TextRow
  readonly #scores: TokenScore[] = []
  #cachedTokens = 0

  constructor(
    private readonly model: Model,
    readonly request: RunningText['request'],
    readonly place: TextPlace,
  ) {
    this.mostTokens = place.limits.maxTokens
    this.#row = new TextRow(requireTokenizer(model).stream(request.promptIds), place.limits)
  }

  get mix(): Mix {
    return this.place.mix
  }

  take(token: NextToken): boolean {
    const { index, events } = this.place
    const row = this.#row
    this.#cachedTokens += token.cachedTokens ?? 0
    const piece = row.push(token.id)
    if (row.finish !== 'eos' && token.scores !== undefined) this.#scores.push(scoreOf(this.model, token))
    const isGrowing = row.finish === undefined
    events.push({ row: index, piece, ...(!isGrowing && { result: this.#result() }) })
    return isGrowing
  }

  fail(error: unknown): void {
    this.place.events.fail(error)
  }

  #result(): Omit<GenerateResult, 'seconds'> {
    const { text, tokenIds, finish } = this.#row
    return {
      text,
      tokens: tokenIds.length,
      promptTokens: this.place.prompt.ids.length,
      cachedTokens: this.#cachedTokens,
      tokenIds,
      finish: finish!,
      seed: this.request.seed,
      ...(this.request.scores !== undefined && { logprobs: this.#scores }),
    }
  }
}

function aloneJob(
  session: WholeSession,
  { source, padding }: TextGraph,
  embedding: OpenEmbedding | undefined,
  texts: readonly WrittenText[],
): TextJob {
  const mixes = texts.map(({ mix }) => mix)
  const prompts = texts.map(({ place }) => place.prompt)
  const read = (feeds: Feeds) => session.runGraph('encoder', feeds, mixes)
  return {
    texts,
    prepare: async (ids) => ({
      context: source && (await (await import('./encoder-source.js')).readSource(session.model, source, prompts, read)),
      vectors: embedding?.(
        prompts.map((prompt, i) => ({ id: ids[i], ids: prompt.ids, pictures: prompt.pictures, mix: mixes[i] })),
        padding,
        (...asked) => session.runGraph(...asked),
      ),
    }),
  }
}

async function prepareSchema({ model, engine }: WholeSession, schema: object): Promise<string> {
  const text = (await import('./schemas.js')).checkedSchema(schema)
  if (await engine.prepareSchema(text)) return text
  const tokenizer = requireTokenizer(model)
  const vocabulary = model.vocabularySize && tokenizer.vocabulary(model.vocabularySize)
  if (!vocabulary || model.eosTokenIds.length === 0) {
    throw new UnsupportedError({
      where: 'schema',
      what: 'texts of this model cannot be kept to a schema',
      expected: 'a tokenizer of bytes (ByteLevel, ByteFallback or Metaspace), vocab_size and eos_token_id',
    })
  }
  await engine.prepareSchema(text, vocabulary)
  return text
}

function textLimits(
  model: Model,
  { ids, endIds, stops }: EncodedPrompt,
  { stop = [], maxNewTokens = GENERATE_DEFAULTS.maxNewTokens }: GenerateOptions,
): TextLimits {
  const room = (model.contextLength ?? Number.POSITIVE_INFINITY) - ids.length
  return {
    endIds: new Set([...model.eosTokenIds, ...endIds]),
    stops: [...stops, ...[stop].flat()],
    maxTokens: Math.min(maxNewTokens, room),
    atMost: maxNewTokens <= room ? 'max-new-tokens' : 'context',
  }
}

function scoreOf(model: Model, { scores }: NextToken): TokenScore {
  const tokenizer = requireTokenizer(model)
  const named = ({ id, logprob }: { id: number; logprob: number }) => {
    return { id, text: tokenizer.decode([id], { specialTokens: true }), logprob }
  }
  const { chosen, top } = scores!
  return { ...named(chosen), top: top.map(named) }
}
