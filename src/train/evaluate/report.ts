// The words of an evaluation's report.

import type { Interval } from './bootstrap.js'

/** The difference of a metric between two models. */
export interface Difference extends Interval {
  /** True if the whole interval is at or on the better side of 0. This is what a gate asks for. */
  readonly isNoWorse: boolean
}

/** The metrics of one model. */
export interface EvaluatedModel {
  /** The name of the adapter; null for the base. */
  readonly name: string | null
  /** Metrics by name, the loss first. Losses are in nats. chrF goes from 0 to 100, shares from 0 to 1. */
  readonly metrics: Readonly<Record<string, Interval>>
  /** These metrics minus the metrics of the first model, paired by record; null for the first model. */
  readonly differences: Readonly<Record<string, Difference>> | null
  /** How often the judge found its answers better than the first model's answers, as good, or worse. */
  readonly judged?: { readonly won: number; readonly tied: number; readonly lost: number }
  /** With `measure: 'calls'`: how often each function was due, called, and called rightly where it was due. */
  readonly functions?: readonly { name: string; due: number; called: number; right: number }[]
  /** With `measure: 'calls'`: how often a function was called in place of another; null is no call. */
  readonly confusions?: readonly { wanted: string | null; called: string | null; count: number }[]
  /** How long its runs took, without opening the model. */
  readonly seconds: number
}

/** A record on which the models differ. */
export interface DifferingRecord {
  /** File and line: `chats.jsonl, line 3`. */
  readonly where: string
  /** The record as JSON, cut to 2000 characters. */
  readonly record: string
  /** The loss of each model, or the metric that is named, in the order of the models. */
  readonly values: readonly number[]
  /**
   * The wanted answer. `answers` are the answers of the models. Both are undefined without `generate`. With a corpus:
   * the relevant documents, and the first results of each model, the relevant ones with a check mark. With `measure:
   * 'calls'`: the wanted calls, and those of the models.
   */
  readonly wanted?: string
  readonly answers?: readonly string[]
}

/** The result of an evaluation. */
export interface EvaluateReport {
  readonly task: string
  readonly records: number
  /** Tokens of all examples. A picture counts with all tokens that the model makes of it. */
  readonly tokens: number
  /** How many documents the corpus has, if questions were asked of one. */
  readonly documents?: number
  /** Metrics that are better when they are lower. */
  readonly lowerIsBetter: readonly string[]
  /** The models, the base first. The base is missing if it has no head for the task's labels. */
  readonly models: readonly EvaluatedModel[]
  /** The metric by which records differ; null if no metric can be computed for single records. */
  readonly differBy: string | null
  /** The records that differ most, the largest difference first. */
  readonly differing: readonly DifferingRecord[]
}
