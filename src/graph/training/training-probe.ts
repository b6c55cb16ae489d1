// Measures the shapes of a training graph's forward part by running it on a few tokens, and says what its lengths mean.

import type { OnnxModel } from '../../formats/onnx/model.js'
import type { Feeds, Runtime, SessionOptions } from '../../runtime/runtime.js'
import type { GradientPath } from '../gradients/backward.js'
import { sessionModel } from '../session-model.js'
import type { RunLength } from '../shapes/plain-shapes.js'
import { type ProbedShape, probeShapes, type ShapeMap } from '../shapes/shapes.js'
import type { Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { LOSS_INPUTS, probeBatch, type TokenBatch } from './training-feeds.js'

/** Batch, sequence and rows with a target where shapes are measured: no length comes about in two ways at both points. */
const POINTS = [
  [2, 3, 4],
  [5, 7, 11],
] as const

/** Names of lengths, by what they are at the two points. */
const NAMES: Readonly<Record<string, string>> = {
  '2/5': 'batch',
  '3/7': 'sequence',
  '6/35': 'rows',
  '4/11': 'targets',
}

/** Where the lengths can be read at run time. */
export const RUN_LENGTHS: readonly RunLength[] = [
  { input: 'input_ids', axis: 0 },
  { input: 'input_ids', axis: 1 },
  { input: LOSS_INPUTS.rows, axis: 0 },
]

/** A few tokens on one thread: what matters is opening the session quickly and without copies of the weights. */
const SESSION: SessionOptions = { optimization: 'disabled', lowMemory: true, threads: 1 }

/** Shapes of all that the nodes on some paths read and write. */
export function measureShapes(
  graph: Graph,
  model: OnnxModel,
  runtime: Runtime,
  paths: readonly GradientPath[],
  feedsOf: (batch: TokenBatch) => Feeds,
): Promise<ShapeMap> {
  const [first, second] = POINTS.map(([batch, sequence, targets]) => feedsOf(probeBatch(batch, sequence, targets)))
  const wanted = new Set<Value>()
  for (const { nodes } of paths) {
    for (const { input, output } of nodes) for (const value of [...input, ...output]) wanted.add(value)
  }
  const open = async (proto: Parameters<typeof sessionModel>[1]) =>
    runtime.createSession(await sessionModel(model, proto), SESSION)
  return probeShapes(graph, open, [first, second], wanted)
}

/** Whether a value has one row for each token at both points. */
export function isOfAllTokens({ dims, other }: ProbedShape): boolean {
  return lengthName(dims[0], other[0]) === 'rows'
}

/** The name of a length that was `dim` and `other` at the two points; undefined if it has none. */
export function lengthName(dim: number, other: number): string | undefined {
  return NAMES[`${dim}/${other}`]
}
