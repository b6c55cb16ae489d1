// A text that is being written, in the thread of the engine: the choice of its next token, and what ends it.

import { Random } from '../../base/random.js'
import type { PictureVectors } from '../../tasks/pictures/pictures.js'
import type { TokenDecoder } from '../../text/decoder.js'
import type { Mix } from '../adapters/choice.js'
import type { RowFactors } from '../adapters/row-factors.js'
import type { Grammars, TextGrammar } from './grammars.js'
import { penalizeRepetition, type ScoredToken, sampleToken, scoreTokens } from './next-token.js'
import type { Sampling } from './sampling.js'
import { type TextLimits, TextRow } from './text-row.js'

export interface TextRequest {
  readonly promptIds: readonly number[]
  readonly mix: Mix
  readonly sampling: Sampling
  readonly seed: number
  /** How many likely tokens to score at each step, besides the chosen one; undefined: no scores. */
  readonly scores: number | undefined
  /** Texts of another scope do not share what was read. */
  readonly scope: string
  /** Tokens that the base alone reads, before the adapter. Such a text is read alone. */
  readonly baseTokens: number
  readonly schema: string | undefined
  readonly limits: TextLimits
  /** Tokens that the encoder reads, if the model has one. */
  readonly sourceIds: readonly number[] | undefined
  readonly pictures: PictureVectors | undefined
}

export interface TextCall {
  readonly texts: readonly TextRequest[]
  /** The most texts of the call that run at a time. */
  readonly batchSize: number
}

/** The next token of a text of a call. */
export interface WrittenToken {
  readonly text: number
  readonly id: number
  readonly scores: { readonly chosen: ScoredToken; readonly top: readonly ScoredToken[] } | undefined
  /** With the first token: how many tokens of the prompt were not read anew. Else 0. */
  readonly cachedTokens: number
}

/** A call whose texts have not all ended. */
export interface OpenCall extends TextCall {
  /** Texts that start together, by number. */
  readonly waiting: number[][]
  /** Nobody wants its texts any more. */
  isOver: boolean
  report(tokens: readonly WrittenToken[]): void
  end(): void
  fail(error: unknown): void
}

export class RunningText {
  readonly request: TextRequest
  readonly tokens: number[]
  newest: WrittenToken | undefined
  /** Why it cannot go on, such as logits that are not finite. */
  failure: unknown
  readonly #known: Set<number>
  readonly #random: Random
  readonly #row: TextRow
  #grammar: TextGrammar | undefined

  /**
   * @param index its number in the call
   * @param mix the arrays of its adapters, which it keeps even if an adapter leaves the session
   * @param decoder needed if it has stop strings
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
    this.#random = new Random(seed, 'sampling')
    this.#row = new TextRow(limits, limits.stops.length === 0 ? undefined : decoder!.stream(promptIds))
  }

  get hasEnded(): boolean {
    return this.failure !== undefined || this.#row.finish !== undefined
  }

  /** Finds the tokens that fit its schema, before each step. */
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

  /** Chooses the next token, unless the text cannot go on. */
  step(logits: Float32Array, cachedTokens: number): void {
    this.newest = undefined
    try {
      if (this.failure === undefined) this.newest = this.#choose(logits, cachedTokens)
    } catch (error) {
      this.failure = error
    }
  }

  #choose(logits: Float32Array, cachedTokens: number): WrittenToken {
    const { sampling, scores } = this.request
    const penalized = penalizeRepetition(logits, this.#known, sampling.repetitionPenalty)
    const allowed = this.#grammar?.masked(penalized) ?? penalized
    const id = sampleToken(allowed, sampling, () => this.#random.uniform())
    this.#grammar?.accept(id)
    this.tokens.push(id)
    this.#known.add(id)
    const scored = scores === undefined ? undefined : scoreTokens(logits, id, scores)
    this.#row.push(id)
    return { text: this.index, id, scores: scored, cachedTokens }
  }

  dispose(): void {
    this.#grammar?.dispose()
    this.#grammar = undefined
  }
}
