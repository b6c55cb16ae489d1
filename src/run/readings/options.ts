// The options and results of labels, tags, vectors and rankings.

import type { SignalLike } from '../../core/base/globals.js'
import type { ImageSource } from '../../model/images/image.js'
import type { AdapterChoice } from '../adapters/choice.js'

/** A text, or two texts that belong together, such as premise and hypothesis or question and answer. */
export type TextOrPair = string | { readonly text: string; readonly textPair?: string | undefined }

/** How many texts run together, and how long they may be. */
export interface BatchOptions {
  /**
   * Longer texts are cut to this number of tokens. Default: the model's maximum.
   * @range an integer of at least 1
   */
  maxLength?: number | undefined
  /**
   * Texts in one run.
   * @range an integer of at least 1
   * @default 8
   */
  batchSize?: number | undefined
  /** Stops the call after the current run. The promise rejects with the signal's reason. */
  signal?: SignalLike | undefined
}

/** Options of `embed`. */
export interface EmbedOptions extends BatchOptions {
  /** One adapter for all texts: its name, or `{ name: weight, … }`; null is the base model alone. Default null. */
  adapter?: AdapterChoice | undefined
  /** How the vectors of the tokens become one vector. Default: as 1_Pooling/config.json says, or else `mean`. */
  pooling?: 'mean' | 'cls' | 'lasttoken' | undefined
  /** What the texts are for: the prompt of queries or of documents is put before them. Default: the default prompt. */
  inputType?: 'query' | 'document' | undefined
  /** What is put before each text, in place of a prompt of the adapter or the model. */
  prompt?: string | undefined
  /**
   * Scales vectors to length 1, so that their product is the cosine.
   * @default true
   */
  normalize?: boolean | undefined
  /**
   * How many numbers of each vector are kept, for models that are trained for it (Matryoshka). Default: all.
   * @range an integer of at least 1
   */
  dimensions?: number | undefined
  /**
   * The form of vectors: a byte for each number, by `ranges`, or a bit (binary), packed into bytes. uint8 and ubinary
   * are without a sign.
   * @default float32
   */
  precision?: Precision | undefined
  /** For int8 and uint8: the values that bytes stand for, as `calibrate` gives them. */
  ranges?: Ranges | undefined
}

/** Names of sentence-transformers for the numbers of a vector. */
export type Precision = 'float32' | 'int8' | 'uint8' | 'binary' | 'ubinary'

/** The least and the highest value of each number of vectors. */
export type Ranges = readonly [least: readonly number[], most: readonly number[]]

/** Vectors of few bits. */
export interface QuantizedOptions extends EmbedOptions {
  precision: 'int8' | 'uint8' | 'binary' | 'ubinary'
}

/** An input of `classify`: a text or a pair of texts; for models that read pictures, a picture. */
export type ClassifyInput = TextOrPair | ImageSource

/** How texts or pictures are classified. */
export interface ClassifyOptions extends TagOptions {
  /**
   * How many labels each result lists.
   * @range an integer of at least 1
   * @default 1
   */
  topK?: number | undefined
}

/** The labels of one text or picture. */
export interface Classification {
  /** The likeliest label. */
  label: string
  /**
   * Its probability. If a text can have several labels, each label has its own probability. If the head gives numbers,
   * `score` is the number.
   */
  score: number
  /** The `topK` likeliest labels, best first. */
  labels: { label: string; score: number }[]
  /** Output of the head: one number for each label. */
  logits: Float32Array
  /** True if the text was longer than `maxLength` and was cut. */
  isTruncated: boolean
}

/** How documents are ranked. */
export interface RerankOptions extends TagOptions {
  /**
   * How many of the best documents come back. Default: all.
   * @range an integer of at least 1
   */
  topN?: number | undefined
}

/** A document that was ranked. */
export interface RankedDocument {
  /** Its place in the list that was given. */
  index: number
  /** From 0 to 1 for most rerankers; the cosine for models of vectors. */
  score: number
}

/** A text, or its words one by one. */
export type TextOrWords = string | { readonly words: readonly string[] }

/** Options of `tag`. */
export interface TagOptions extends BatchOptions {
  /** Name of an adapter of the session; null is the base model alone. Default null. */
  adapter?: string | null | undefined
}

/** A word and its tag. */
export interface TaggedWord extends Pick<Entity, 'start' | 'end'> {
  /** The word. */
  text: string
  /** The likeliest tag, such as B-PER or O. */
  tag: string
  /** Its probability. */
  score: number
}

/** Consecutive words that belong together, such as a name. */
export interface Entity {
  /** Its kind: PER for words with the tags B-PER and I-PER. */
  label: string
  /** The part of the text. */
  text: string
  /** The index of its first character in the text. */
  start: number
  /** The index after its last character. */
  end: number
  /** The mean of the probabilities of the entity's words. */
  score: number
}

/**
 * The tags and entities of one text. If the text was given as words, places count in these words with a space between
 * two of them.
 */
export interface Tagging {
  /** The entities that the tags spell, in the order of the text. */
  entities: Entity[]
  /** All words, except words that the tokenizer gives no token. */
  words: TaggedWord[]
  /** True if the text was longer than `maxLength` and was cut. */
  isTruncated: boolean
}
