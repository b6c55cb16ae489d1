// A text that is being written, in the engine's thread: chooses its next token, and knows when it ends.

import { Random } from '../../core/base/random.js'
import type { PictureVectors } from '../../model/pictures/pictures.js'
import type { TokenDecoder } from '../../model/text/decoder.js'
import type { Mix } from '../adapters/choice.js'
import type { RowFactors } from '../adapters/row-factors.js'
import type { Grammars, TextGrammar } from '../schemas/grammars.js'
import { changedLogits, type ScoredToken, sampleToken, scoreTokens, weigh } from './next-token.js'
import type { Sampling } from './sampling.js'
import { type TextLimits, type TextPiece, TextRow } from './text-row.js'

export interface TextRequest {
  readonly promptIds: readonly number[]
  readonly mix: Mix
  readonly sampling: Sampling
  readonly seed: number
  /** How many of the most likely tokens to score at each step, besides the chosen token. Undefined: no scores. */
  readonly scores: number | undefined
  /** Scores are of logits ÷ temperature, as a trainer needs them. */
  readonly isSampled: boolean
  /** Only texts of the same scope share cached prompts. */
  readonly scope: string
  readonly schema: string | undefined
  readonly limits: TextLimits
  /** Numbers that are added to the logits of tokens. */
  readonly bias: readonly (readonly [id: number, bias: number])[]
  /** Tokens that the encoder reads, if the model has one. */
  readonly sourceIds: readonly number[] | undefined
  readonly pictures: PictureVectors | undefined
}

export interface TextCall {
  readonly texts: readonly TextRequest[]
  /** The largest number of texts of the call that run at the same time. */
  readonly batchSize: number
}

/** The next token of a text of a call. */
export interface WrittenToken {
  readonly text: number
  readonly id: number
  readonly scores: { readonly chosen: ScoredToken; readonly top: readonly ScoredToken[] } | undefined
  /** With the first token: how many tokens of the prompt came from a cache. Later 0. */
  readonly cachedTokens: number
  /** True if the text had to end before its limit to fit its schema. */
  readonly isCut?: boolean | undefined
  /** What it adds to the text, if the text has stop strings: then it is decoded here alone. */
  readonly decoded?: TextPiece | undefined
}

/** A call whose texts have not all ended. */
export interface OpenCall extends TextCall {
  /** The indices of texts that have not started, in groups that start together. */
  readonly waiting: number[][]
  /** True if the caller no longer wants its texts. */
  isOver: boolean
  report(tokens: readonly WrittenToken[]): void
  end(): void
  fail(error: unknown): void
}

export class RunningText {
  readonly request: TextRequest
  readonly tokens: number[]
  newest: WrittenToken | undefined
  /** Why the text cannot go on, such as logits that are not finite. */
  failure: unknown
  readonly #known: Set<number>
  readonly #written = new Map<number, number>()
  readonly #isPlain: boolean
  readonly #random: Random
  readonly #row: TextRow
  #grammar: TextGrammar | undefined

  /**
   * @param index the number of the text in its call
   * @param mix the arrays of its adapters, which it keeps even if an adapter leaves the session
   * @param decoder needed if the text has stop strings
   */
  constructor(
    readonly call: OpenCall,
    private readonly index: number,
    readonly mix: RowFactors[number],
    decoder: TokenDecoder | undefined,
  ) {
    this.request = call.texts[index]
    const { promptIds, seed, limits } = this.request
    this.tokens = [...promptIds]
    this.#known = new Set(promptIds)
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = this.request.sampling
    const isUnpenalized = repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0
    this.#isPlain = isUnpenalized && this.request.bias.length === 0 && limits.minTokens === 0
    this.#random = new Random(seed, 'sampling')
    this.#row = new TextRow(limits, limits.stops.length === 0 ? undefined : decoder!.stream(promptIds))
  }

  get hasEnded(): boolean {
    return this.failure !== undefined || this.#row.finish !== undefined
  }

  /** Finds the tokens that its schema allows. Call this before each step. */
  async prepare(grammars: Grammars | undefined): Promise<void> {
    const { schema, limits } = this.request
    if (schema === undefined) return
    try {
      this.#grammar ??= await grammars!.start(schema, [...limits.endIds])
      await this.#grammar.prepare()
    } catch (error) {
      this.failure = error
    }
  }

  /** Chooses the next token, or sets `failure` if the text cannot go on. */
  step(logits: Float32Array, cachedTokens: number): void {
    this.newest = undefined
    try {
      if (this.failure === undefined) this.newest = this.#choose(logits, cachedTokens)
    } catch (error) {
      this.failure = error
    }
  }

  #choose(logits: Float32Array, cachedTokens: number): WrittenToken {
    const { sampling, scores, isSampled, bias, limits } = this.request
    // A grammar knows when a text can end.
    const isShort = this.#grammar === undefined && this.#row.tokenIds.length < limits.minTokens
    const tokens = { known: this.#known, written: this.#written, banned: isShort ? limits.endIds : [] }
    const changed = this.#isPlain ? logits : changedLogits(logits, { sampling, bias, ...tokens })
    const allowed = this.#grammar?.masked(changed) ?? changed
    const temperature = isSampled ? sampling.temperature : 1
    const weighed = scores === undefined ? undefined : weigh(logits, temperature)
    const isShared = allowed === logits && temperature === sampling.temperature
    const drawn = sampleToken(allowed, sampling, () => this.#random.uniform(), isShared ? weighed : undefined)
    const id = this.#grammar?.accept(drawn, limits.maxTokens - this.#row.tokenIds.length) ?? drawn
    const isCut = this.#grammar?.isCut
    this.tokens.push(id)
    this.#known.add(id)
    this.#written.set(id, (this.#written.get(id) ?? 0) + 1)
    const scored = weighed && scoreTokens(logits, id, scores!, weighed)
    const piece = this.#row.push(id, isCut)
    const { finish, stop } = this.#row
    const decoded = limits.stops.length === 0 ? undefined : { piece, finish, stop }
    return { text: this.index, id, scores: scored, cachedTokens, isCut, decoded }
  }

  dispose(): void {
    this.#grammar?.dispose()
    this.#grammar = undefined
  }
}
