// Measures the shapes of a training graph's forward part by running it on the two small inputs of an objective's probe.

import { sessionModel } from '../../model/session-model.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { GradientPath } from '../../onnx/gradients/backward.js'
import type { Feeds, SessionOpener, SessionOptions } from '../../onnx/runtime/runtime.js'
import { type ProbedShape, probeShapes, type ShapeMap } from '../../onnx/shapes/shapes.js'
import type { Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { type DropoutMask, openMasks } from './dropout.js'
import { feedsFor } from './float32.js'
import type { Length, Probe } from './objective-graph.js'

/** Options for runs of a few tokens: the session opens quickly, and copies no weights. */
const SESSION: SessionOptions = { optimization: 'disabled', lowMemory: true, threads: 1 }

/** Measures shapes. Masks and fed gradients get the shape of the value that they multiply. */
export async function measureShapes(
  graph: Graph,
  model: OnnxModel,
  runtime: SessionOpener,
  path: GradientPath,
  { feeds, lengths }: Probe,
  fixed: {
    readonly feeds: Feeds
    readonly masks: readonly DropoutMask[]
    readonly fedGradients: readonly { readonly value: Value; readonly input: string }[]
  },
): Promise<ShapeMap> {
  const wanted = new Set<Value>(lengths.flatMap(({ source }) => source?.input ?? []))
  for (const { input, output } of path.nodes) for (const value of [...input, ...output]) wanted.add(value)
  const fedLike = [
    ...fixed.masks.map(({ input, of }) => ({ input, like: of })),
    ...fixed.fedGradients.map(({ input, value }) => ({ input, like: value })),
  ]
  for (const { like } of fedLike) wanted.add(like)
  const open = async (proto: Parameters<typeof sessionModel>[1]) =>
    runtime.createSession(await sessionModel(model, proto), SESSION)
  const scalar = { type: 'float32', data: Float32Array.of(1), dims: [] } as const
  const ones: Feeds = Object.fromEntries(fixed.fedGradients.map(({ input }) => [input, scalar]))
  const all = (pointFeeds: Feeds) =>
    feedsFor(graph, { ...pointFeeds, ...fixed.feeds, ...openMasks(fixed.masks), ...ones })
  // Training, evaluation and later runs have graphs of the same operators.
  const answers = model.once(measureShapes, () => new Map())
  const shapes = await probeShapes(graph, open, [all(feeds[0]), all(feeds[1])], wanted, answers)
  for (const { input, like } of fedLike) {
    const shape = shapes.get(like)
    if (shape === undefined) continue
    shapes.set(input, shape)
    for (const { output } of graph.consumers(input)) shapes.set(output[0], shape)
  }
  return shapes
}

export function lengthOf(lengths: readonly Length[], dim: number | undefined, second: number | undefined) {
  return lengths.find(({ probed }) => probed[0] === dim && probed[1] === second)
}

/** Names a length or a multiple of it, which occurs if queries that share a key are rows of one product. */
export function nameOfLength(lengths: readonly Length[], dim: number, second: number): string | undefined {
  const length = lengths.find(({ probed: [a, b] }) => dim % a === 0 && dim / a === second / b)
  return length && `${dim === length.probed[0] ? '' : `${dim / length.probed[0]} `}${length.name}`
}

const TYPICAL = 256

/**
 * Estimates a shape's size at typical lengths. A dimension that matches no input length is taken for a product of two.
 */
export function typicalElements({ dims, second }: ProbedShape, lengths: readonly Length[]): number {
  return dims.reduce((product, dim, axis) => {
    if (dim === second[axis]) return product * dim
    const isPart = ({ source, tokens, probed: [a, b] }: Length) =>
      (source !== undefined || tokens !== undefined) && dim / a === second[axis] / b
    const part = lengths.find(isPart)
    return product * (part === undefined ? TYPICAL ** 2 : (TYPICAL * dim) / part.probed[0] / (part.tokens ?? 1))
  }, 1)
}
