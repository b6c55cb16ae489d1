// Adapted parameters of experts in training. The inputs are as PEFT has them: A (E·r, k), expert after expert, and
// Bᵀ (r·E, d), where row j·E + e is column j of B of expert e.

import { siteInput } from '../../model/inject/sites.js'
import { addToStack } from '../../model/inject/stacks.js'
import type { Parameter, RowOrder } from '../../model/place/experts.js'
import type { Placement } from '../../model/place/placement.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'

export type TrainedExperts = Parameter & { readonly rank: number; readonly scaling: number }

/**
 * Adds s·B·A to stacked weights, as PEFT does, and returns the branches of experts that are layers of their own. The
 * sum is as large as the weights, and so is its gradient.
 */
export function adaptExperts(graph: Graph, all: readonly TrainedExperts[], placements: readonly Placement[]) {
  const g = new Builder(graph, 'lora')
  const stacks: Value[] = []
  const branches = all.flatMap((of) => {
    const { rank, scaling, d, experts } = of
    const places = placements.filter(({ part }) => part === of.name)
    for (const at of places) {
      if (at.kind !== 'stack') continue
      const { stack, order } = at
      stacks.push(stack.weight)
      const [a, b] = [siteInput(of.name, 'A'), inRows(g, of, order)]
      const weightA = g.reshape(a, g.int([experts, rank, -1]))
      const weightB = g.reshape(b, g.int([experts, rank, d]))
      const factors = stack.isInputMajor ? [weightA, weightB] : [weightB, weightA]
      const delta = g.matmul(g.transpose(factors[0], [0, 2, 1]), factors[1])
      addToStack(graph, g, stack.weight, g.mul(delta, g.float(scaling)))
    }
    return places.flatMap((at) => {
      if (at.kind !== 'layer') return []
      const { linear, expert: index = 0, start, order } = at
      const part = linear.d === d ? undefined : { start, end: start + linear.d }
      return { linear, rank, scaling, part, expert: { of, index, order } }
    })
  })
  return { branches, stacks }
}

/** A (r, k) and Bᵀ (r, d) of each expert. */
export function ofExperts(g: Builder, of: TrainedExperts, order: RowOrder) {
  const { experts, rank } = of
  const ranks = g.int(Array<number>(experts).fill(rank))
  const split = (value: Value) =>
    experts === 1 ? [value] : g.node('Split', [value, ranks], { axis: 0 }, experts).output
  return { weightA: split(siteInput(of.name, 'A')), weightB: split(inRows(g, of, order)) }
}

/** Bᵀ as (E·r, d), expert after expert, with the columns in the graph's order. */
function inRows(g: Builder, { name, experts, rank, d }: TrainedExperts, order: RowOrder): Value {
  const byExpert = g.transpose(g.reshape(siteInput(name, 'B'), g.int([rank, experts, d])), [1, 0, 2])
  const halves = order === 'in turn' ? [2, d / 2] : [d / 2, 2]
  const turned = () => g.transpose(g.reshape(byExpert, g.int([experts, rank, ...halves])), [0, 1, 3, 2])
  return g.reshape(order === undefined ? byExpert : turned(), g.int([experts * rank, d]))
}
