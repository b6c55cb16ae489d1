// What graphs of training have to be told: what is built on the model's outputs, and how its shapes are measured. Tasks
// implement it; nothing here knows them.

import type { Feeds } from '../../runtime/runtime.js'
import type { RunLength } from '../shapes/plain-shapes.js'
import type { Value } from '../view/builder.js'
import type { ObjectiveGraph } from './objective-graph.js'

/** A length that differs between runs, such as the number of sequences. */
export interface Length {
  readonly name: string
  /** What it is at the two probe points. No other length, and no constant, may be the same at both. */
  readonly probed: readonly [number, number]
  /** What it is in a run of these feeds. */
  of(feeds: Feeds): number
  /** The axis of a graph input where the graph itself can read it; undefined for products of others. */
  readonly source?: RunLength | undefined
}

/** Two small runs by which shapes are measured. */
export interface Probe {
  readonly feeds: readonly [Feeds, Feeds]
  readonly lengths: readonly Length[]
}

/** What a model is trained for. */
export interface Objective {
  readonly probe: Probe
  /**
   * Builds on the model's outputs.
   *
   * @returns a scalar; the loss is that over the normalizer of a run
   * @throws UnsupportedError when the model has not what it needs
   */
  forward(graph: ObjectiveGraph): Value
}
