// Merging into layers whose weights are integers: by default they stay, and the factors stand beside them as constants.

import { UnsupportedError } from '../../base/errors.js'
import { groupBy } from '../../base/group.js'
import { transpose } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { addBranches, type BranchValues } from '../../graph/inject/add-branches.js'
import { affineOf } from '../../graph/inject/affine.js'
import type { Linear } from '../../graph/match/linears.js'
import { findBranches } from '../../graph/match/merged-branches.js'
import { layerOfPart } from '../../graph/match/packed.js'
import type { Graph } from '../../graph/view/graph.js'
import type { LoraLayer } from '../../lora/layer.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import type { GraphShare } from '../plan/adapters.js'

export interface QuantizedPart {
  readonly share: GraphShare
  readonly name: string
  readonly part: { readonly name: string; readonly d: number; readonly start: number }
  readonly linear: Linear
}

export type QuantizedLayer = Awaited<ReturnType<typeof readQuantized>>

export async function readQuantized({ share, name, part, linear }: QuantizedPart) {
  const { adapter, index, weight } = share
  const own = await adapter.read(name)
  const layer = own.kind === 'embedding' ? own.product : layerOfPart({ ...part, k: linear.k, layer: own as LoraLayer })
  return { adapter: index, name, layer, linear, weight }
}

/** Each adapter's branches have one number. */
export async function mergeBranches(model: OnnxModel, graph: Graph, layers: readonly QuantizedLayer[]): Promise<void> {
  const first = findBranches(graph).reduce((next, { number }) => Math.max(next, number + 1), 0)
  for (const [i, own] of [...groupBy(layers, ({ adapter }) => adapter).values()].entries()) {
    const values: { linear: Linear; values: BranchValues }[] = []
    for (const { linear, layer, weight } of own) {
      values.push({ linear, values: await branchValues(model, graph, linear, layer, weight) })
    }
    addBranches(graph, values, first + i)
  }
}

async function branchValues(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  layer: LinearValues,
  weight: number,
): Promise<BranchValues> {
  const scale = weight * layer.scaling
  const affine = await affineOf(model, graph, linear, layer)
  if (affine !== undefined && layer.magnitude === undefined && weight !== 1) {
    affine.shift = affine.shift.map((value) => weight * value)
  }
  return {
    rank: layer.rank,
    weightA: Float32Array.from(transpose(layer.weightA).data),
    weightB: Float32Array.from(transpose(layer.weightB).data, (value) => scale * value),
    affine,
  }
}

/** DoRA's norm is that of one sum; with another change of the same outputs it would be another. */
export function refuseDoraSums(graph: Graph, layers: readonly QuantizedLayer[]): void {
  const taken = new Set(findBranches(graph).flatMap(({ factors }) => factors.map(({ module }) => module)))
  const byName = groupBy(layers, ({ linear }) => linear.name)
  for (const { name, layer, linear, adapter: own } of layers) {
    const isAlone = !taken.has(linear.name) && byName.get(linear.name)!.every(({ adapter }) => adapter === own)
    if (layer.magnitude === undefined || isAlone) continue
    const what = 'a DoRA layer and another adapter’s layer beside one weight cannot be merged together'
    throw new UnsupportedError({ where: name, what, hint: 'Merge it alone, into a graph without other adapters' })
  }
}
