// Puts LoRA branches with constant factors beside layers: y' = c ⊙ (y + (x·Aᵀ)·(s·Bᵀ)) + t.

import { encodeFloats, type FloatDtype, isFiniteStored } from '../../core/base/dtype.js'
import { NumericError, UnsupportedError } from '../../core/base/errors.js'
import { groupBy } from '../../core/base/group.js'
import { create } from '../../onnx/format/protobuf.js'
import { DataType, dataTypeName, TensorProtoSchema } from '../../onnx/format/tensors.js'
import { Builder } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { Linear } from '../match/linears.js'
import { type BranchFactors, branchFactors, branchScope } from '../match/merged-branches.js'
import type { Affine } from './affine.js'
import { adaptNodes } from './inject.js'

export interface BranchValues {
  readonly rank: number
  /** Aᵀ (k, r) */
  readonly weightA: Float32Array
  /** s·Bᵀ (r, d) */
  readonly weightB: Float32Array
  readonly affine: Affine | undefined
}

const TYPES: Partial<Record<DataType, FloatDtype>> = { [DataType.FLOAT]: 'fp32', [DataType.FLOAT16]: 'fp16' }

export function addBranches(
  graph: Graph,
  layers: readonly { readonly linear: Linear; readonly values: BranchValues }[],
  number: number,
): void {
  const valuesOf = new Map(layers.map(({ linear, values }) => [linear, values]))
  const seen = new Map<string, number>()
  for (const parts of groupBy(valuesOf.keys(), ({ node }) => node).values()) {
    const module = parts[0].fused?.module ?? parts[0].name
    const count = (seen.get(module) ?? 0) + 1
    seen.set(module, count)
    // If several nodes compute a module, each gets a branch.
    const g = new Builder(graph, branchScope(number, count === 1 ? module : `${module}@${count}`))
    adaptNodes(
      graph,
      g,
      parts,
      (linear, base) => {
        const { weightA, weightB, affine } = declare(graph, linear, valuesOf.get(linear) as BranchValues, number)
        const low = linear.form.isLookup ? g.op('Gather', [weightA, linear.input]) : g.matmul(linear.input, weightA)
        const product = g.matmul(low, weightB)
        if (base === undefined) return product
        const sum = g.add(base, product)
        return affine === undefined ? sum : g.add(g.mul(sum, affine.scale), affine.shift)
      },
      (linear) => valuesOf.get(linear)?.affine !== undefined,
    )
  }
}

/** Adds the initializers of a branch. Throws NumericError if a value is not finite in the stored type. */
function declare(
  graph: Graph,
  { name, k, d, node, dataType }: Linear,
  { rank, weightA, weightB, affine }: BranchValues,
  number: number,
): BranchFactors {
  const stored = TYPES[dataType]
  if (stored === undefined) {
    throw new UnsupportedError({
      where: `node ${node.name}`,
      what: 'a branch cannot be put beside a layer of this type',
      expected: 'FLOAT or FLOAT16',
      got: dataTypeName(dataType),
    })
  }
  const factors = branchFactors(number, name, affine !== undefined)
  const add = (tensor: string, values: Float32Array, dims: number[]) => {
    const rawData = encodeFloats(values, stored)
    if (!isFiniteStored(rawData, stored))
      throw new NumericError({ where: name, what: `the adapter holds values that are not finite in ${stored}` })
    // If a module is called twice, both calls share the tensor.
    if (graph.initializers.has(tensor)) return
    graph.addInitializer(create(TensorProtoSchema, { name: tensor, dataType, dims: dims.map(BigInt), rawData }))
  }
  add(factors.weightA, weightA, [k, rank])
  add(factors.weightB, weightB, [rank, d])
  if (factors.affine !== undefined && affine !== undefined) {
    add(factors.affine.scale, affine.scale, [d])
    add(factors.affine.shift, affine.shift, [d])
  }
  return factors
}
