// Graders: OpenAI's objects that judge a text, as in its fine-tuning API. In their texts `{{item.answer}}` is a field
// of the record, `{{sample.output_text}}` the text that the model wrote, and `{{sample.output_json.city}}` a part of it
// if it is JSON.

import type { SignalLike } from '../../../core/base/globals.js'

/** Gives 1 or 0. */
export interface StringCheckGrader {
  readonly type: 'string_check'
  readonly name: string
  readonly input: string
  readonly reference: string
  /** `eq` and `ne`: whether both are equal. `like`: whether `input` contains `reference`; `ilike` ignores case. */
  readonly operation: 'eq' | 'ne' | 'like' | 'ilike'
}

/** Gives a number from 0 to 1; cosine from −1. */
export interface TextSimilarityGrader {
  readonly type: 'text_similarity'
  readonly name: string
  readonly input: string
  readonly reference: string
  /**
   * `fuzzy_match` is `fuzz.ratio` of rapidfuzz, `bleu` `sentence_bleu` of sacrebleu, `gleu` `sentence_gleu` of nltk for
   * words between spaces, and `rouge_…` the F1 of rouge-score without a stemmer. `cosine` needs a session with an
   * encoder under this name.
   */
  readonly evaluation_metric:
    | 'cosine'
    | 'fuzzy_match'
    | 'bleu'
    | 'gleu'
    | 'rouge_1'
    | 'rouge_2'
    | 'rouge_3'
    | 'rouge_4'
    | 'rouge_5'
    | 'rouge_l'
  /**
   * Has no effect. It is allowed because graders of OpenAI's evaluations have it.
   * @range a finite number
   */
  readonly pass_threshold?: number | undefined
}

/** A message to a model that judges. Pictures and sound are refused. */
export interface GraderMessage {
  readonly role: 'user' | 'assistant' | 'system' | 'developer'
  readonly content: GraderContent | readonly GraderContent[]
  readonly type?: 'message' | undefined
}

/** A text of a {@link GraderMessage}. */
export type GraderContent = string | { readonly type: 'input_text' | 'output_text'; readonly text: string }

/** A model gives a score, as JSON with `result`, or as a number alone. */
export interface ScoreModelGrader {
  readonly type: 'score_model'
  readonly name: string
  readonly model: string
  readonly input: readonly GraderMessage[]
  /** The smallest and the largest score. Default: 0 and 1. */
  readonly range?: readonly number[] | undefined
  readonly sampling_params?: SamplingParams | undefined
  /**
   * Has no effect. It is allowed because graders of OpenAI's evaluations have it.
   * @range a finite number
   */
  readonly pass_threshold?: number | undefined
}

/** How a model that judges samples. null counts as left out. */
export interface SamplingParams {
  /** @range a finite number of at least 0 */
  readonly temperature?: number | undefined
  /** @range a number in (0, 1] */
  readonly top_p?: number | undefined
  /** @range a safe integer */
  readonly seed?: number | undefined
  /** @range an integer of at least 1 */
  readonly max_completions_tokens?: number | undefined
  readonly reasoning_effort?: string | undefined
}

/** A model chooses a label: 1 if it is one of `passing_labels`, otherwise 0. */
export interface LabelModelGrader {
  readonly type: 'label_model'
  readonly name: string
  readonly model: string
  readonly input: readonly GraderMessage[]
  readonly labels: readonly string[]
  readonly passing_labels: readonly string[]
}

/** Joins the numbers of graders by a formula. */
export interface MultiGrader {
  readonly type: 'multi'
  readonly name: string
  /** The graders by the names that the formula uses. None of them is `multi`. */
  readonly graders: Readonly<Record<string, Grader>>
  /** Numbers, names of graders, + - * / ^, parentheses, and min, max, abs, floor, ceil, exp, sqrt, log. */
  readonly calculate_output: string
}

/** An object that judges a text, as OpenAI's fine-tuning takes it. */
export type Grader = StringCheckGrader | TextSimilarityGrader | ScoreModelGrader | LabelModelGrader | MultiGrader

/** A message as {@link Judge} gets it. */
export interface JudgeMessage {
  readonly role: string
  readonly content: string
}

/** How a {@link Judge} is asked to write. */
export interface JudgeOptions {
  /** The name that the grader has for the model. */
  readonly model: string
  /** The JSON schema that the answer should fit. */
  readonly schema: object
  readonly temperature?: number | undefined
  readonly topP?: number | undefined
  readonly seed?: number | undefined
  readonly maxTokens?: number | undefined
  readonly reasoningEffort?: string | undefined
}

/** Answers the messages of a grader. */
export type Judge = (messages: readonly JudgeMessage[], options: JudgeOptions) => string | Promise<string>

/** A model behind an API like OpenAI's. Redirects are not followed. */
export interface GraderServer {
  /** Its address up to /v1. */
  readonly url: string
  readonly key?: string | undefined
  /** The server's name of the model. Default: the grader's name of it. */
  readonly model?: string | undefined
}

/** The part of a session that graders use. */
export interface GraderSession {
  generate(
    messages: readonly JudgeMessage[],
    options: {
      readonly schema: object
      readonly temperature?: number | undefined
      readonly topP?: number | undefined
      readonly seed?: number | undefined
      readonly maxNewTokens?: number | undefined
      readonly signal?: SignalLike | undefined
    },
  ): Promise<{ readonly text: string }>
  embed(texts: readonly string[]): Promise<readonly Float32Array[]>
}

/** Answers for a model that a grader names: a function, the address of a server up to /v1, or a session. */
export type GraderModel = Judge | string | GraderServer | GraderSession
