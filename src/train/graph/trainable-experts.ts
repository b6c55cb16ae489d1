// Adapted parameters of experts in training. The inputs are as PEFT has them: A (E·r, k), expert after expert, and
// Bᵀ (r·E, d), where row j·E + e is column j of B of expert e.

import { siteInput } from '../../model/inject/sites.js'
import { addToStack } from '../../model/inject/stacks.js'
import type { Linear } from '../../model/match/linears.js'
import { type Parameter, placeExperts, type RowOrder } from '../../model/place/experts.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'

export type TrainedExperts = Parameter & { readonly rank: number; readonly scaling: number }

/**
 * Adds s·B·A to stacked weights, as PEFT does, and returns the branches of experts that are layers of their own. The
 * sum is as large as the weights, and so is its gradient.
 */
export function adaptExperts(
  graph: Graph,
  linears: readonly Linear[],
  all: readonly TrainedExperts[],
  config: Readonly<Record<string, unknown>>,
) {
  const g = new Builder(graph, 'lora')
  const stacks: Value[] = []
  // Find all places before the first one changes.
  const places = all.map((of) => placeExperts(graph, linears, of, config))
  const branches = all.flatMap((of, i) => {
    const { rank, scaling, d, experts } = of
    const { order, layers, stack } = places[i]
    if (stack !== undefined) {
      stacks.push(stack.weight)
      const [a, b] = [siteInput(of.name, 'A'), inRows(g, of, order)]
      const weightA = g.reshape(a, g.int([experts, rank, -1]))
      const weightB = g.reshape(b, g.int([experts, rank, d]))
      const factors = stack.isInputMajor ? [weightA, weightB] : [weightB, weightA]
      const delta = g.matmul(g.transpose(factors[0], [0, 2, 1]), factors[1])
      addToStack(graph, g, stack.weight, g.mul(delta, g.float(scaling)))
    }
    return layers.map(({ linear, expert: index, start }) => {
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
