// If a value is cut into slices side by side, joins their gradients with a Concat, instead of adding tensors that are
// padded with zeros. Rotary embeddings cut each head into two halves in this way.

import type { NodeProto } from '../../formats/onnx/tensors.js'
import { isStatic, type ShapeMap, staticContent } from '../shapes/shapes.js'
import type { Builder, Value } from '../view/builder.js'
import { clampStart } from './context.js'

export interface Contribution {
  readonly make: () => Value
  /** If a Slice cuts the value: the node, and the gradient of its output. */
  readonly slice?: { readonly node: NodeProto; readonly dy: Value } | undefined
}

interface Cut {
  readonly axis: number
  readonly start: number
  readonly end: number
  readonly length: number
  readonly dy: Value
  readonly contribution: Contribution
}

export function joinSlices(g: Builder, shapes: ShapeMap, contributions: readonly Contribution[]): Contribution[] {
  const cuts = contributions.flatMap((contribution) => cutOf(shapes, contribution) ?? [])
  const joined = new Set<Contribution>()
  const result: Contribution[] = []
  for (const axis of new Set(cuts.map((cut) => cut.axis))) {
    for (const chain of partitions(cuts.filter((cut) => cut.axis === axis))) {
      for (const { contribution } of chain) joined.add(contribution)
      const dys = chain.map(({ dy }) => dy)
      result.push({ make: () => g.concat(dys, axis) })
    }
  }
  return [...contributions.filter((contribution) => !joined.has(contribution)), ...result]
}

/** Returns the slice if it cuts a single static axis, with step 1 and bounds that are the same in every run. */
function cutOf(shapes: ShapeMap, contribution: Contribution): Cut | undefined {
  if (contribution.slice === undefined) return undefined
  const { node, dy } = contribution.slice
  const [x, startsInput, , axesInput, stepsInput] = node.input
  const from = shapes.get(x)
  const to = shapes.get(node.output[0])
  const starts = startsInput === undefined ? undefined : staticContent(shapes, startsInput)
  const axes = axesInput ? staticContent(shapes, axesInput) : starts?.map((_, i) => i)
  const steps = stepsInput ? staticContent(shapes, stepsInput) : [1]
  if (starts?.length !== 1 || axes?.length !== 1 || steps?.[0] !== 1 || from === undefined || to === undefined) {
    return undefined
  }
  const axis = axes[0] < 0 ? axes[0] + from.dims.length : axes[0]
  if (!isStatic(from, axis) || !isStatic(to, axis)) return undefined
  const length = from.dims[axis]
  const start = clampStart(starts[0], length, 1)
  return { axis, start, end: start + to.dims[axis], length, dy, contribution }
}

/** Finds chains of cuts that cover an axis from its start to its end without gaps. */
function partitions(cuts: readonly Cut[]): Cut[][] {
  const free = new Set(cuts)
  const chains: Cut[][] = []
  for (const first of cuts) {
    if (first.start !== 0 || !free.has(first)) continue
    const chain = [first]
    let { end } = first
    while (end !== first.length) {
      const next = cuts.find((cut) => free.has(cut) && cut.start === end && cut.end > end)
      if (next === undefined) break
      chain.push(next)
      end = next.end
    }
    if (chain.length < 2 || end !== first.length) continue
    for (const cut of chain) free.delete(cut)
    chains.push(chain)
  }
  return chains
}
