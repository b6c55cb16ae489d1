// Finds LoRA branches that a merge put beside quantized weights, by their names lora/NUMBER/MODULE/…

import type { NodeProto } from '../../onnx/format/tensors.js'
import type { Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'

const NAME = /^lora\/(\d+)\/(.+)\/[^/]+$/

export interface BranchFactors {
  readonly module: string
  /** Aᵀ (k, r), or A of an embedding (V, r) */
  readonly weightA: string
  /** s·Bᵀ (r, d) */
  readonly weightB: string
  /** c (d) and t (d) of inject/affine; undefined means 1 and 0. */
  readonly affine: { readonly scale: string; readonly shift: string } | undefined
}

export function branchScope(number: number, module: string): string {
  return `lora/${number}/${module}`
}

export function branchFactors(number: number, module: string, hasAffine: boolean): BranchFactors {
  const scope = branchScope(number, module)
  const affine = hasAffine ? { scale: `${scope}/scale`, shift: `${scope}/shift` } : undefined
  return { module, weightA: `${scope}/A`, weightB: `${scope}/B`, affine }
}

/**
 * Finds branches, in the order of their numbers. Each adapts one product, which may compute several modules. If several
 * nodes compute a module, its later branches are named @2, @3, …
 */
export function findBranches(graph: Graph) {
  const groups = new Map<string, { number: number; module: string; nodes: NodeProto[] }>()
  for (const node of graph.nodes) {
    const [, number, module] = NAME.exec(node.name) ?? []
    if (number === undefined) continue
    const scope = branchScope(Number(number), module)
    const group = groups.get(scope) ?? { number: Number(number), module, nodes: [] }
    groups.set(scope, group)
    group.nodes.push(node)
  }
  const branches = [...groups.values()].flatMap((group) => {
    const inside = new Set(group.nodes)
    const base = baseOf(graph, inside)
    const isReadOutside = (value: Value) =>
      graph.outputs.some(({ name }) => name === value) || graph.consumers(value).some((reader) => !inside.has(reader))
    const output = group.nodes.map((node) => node.output[0]).find(isReadOutside)
    const factors = factorsOf(graph, group.nodes, group.number)
    if (base === undefined || output === undefined || factors.length === 0) return []
    return [{ ...group, base, output, factors }]
  })
  return branches.sort((a, b) => a.number - b.number)
}

/** Returns the product that the branch adapts: the first input of its Add or Slice. */
function baseOf(graph: Graph, inside: ReadonlySet<NodeProto>): Value | undefined {
  for (const { opType, input } of inside) {
    const maker = graph.producer(input[0])
    if ((opType === 'Add' || opType === 'Slice') && maker !== undefined && !inside.has(maker)) return input[0]
  }
  return undefined
}

function factorsOf(graph: Graph, nodes: readonly NodeProto[], number: number): BranchFactors[] {
  const inputs = new Set(nodes.flatMap(({ input }) => input))
  return [...inputs].flatMap((input) => {
    const [, digits, module] = NAME.exec(input) ?? []
    if (Number(digits) !== number || !input.endsWith('/A') || !graph.initializers.has(input)) return []
    const factors = branchFactors(number, module, inputs.has(`${branchScope(number, module)}/scale`))
    return graph.initializers.has(factors.weightB) ? [factors] : []
  })
}
