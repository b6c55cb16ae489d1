// Merges into quantized layers: the integers stay, and the factors become constants of a branch beside them.

import { UnsupportedError } from '../../core/base/errors.js'
import { groupBy } from '../../core/base/group.js'
import { transpose } from '../../core/base/tensor.js'
import type { ExpertLora } from '../../lora/kinds/experts.js'
import type { LoraLayer } from '../../lora/layer.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import { addBranches, type BranchValues } from '../../model/inject/add-branches.js'
import { affineOf } from '../../model/inject/affine.js'
import type { Linear } from '../../model/match/linears.js'
import { findBranches } from '../../model/match/merged-branches.js'
import { layerOfPart } from '../../model/match/packed.js'
import { layerOfExpert } from '../../model/place/experts.js'
import type { LayerPlacement } from '../../model/place/placement.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { GraphShare } from '../plan/adapters.js'

export interface QuantizedPart {
  readonly share: GraphShare
  readonly at: LayerPlacement
}

export interface QuantizedLayer {
  readonly name: string
  readonly layer: LinearValues
  readonly linear: Linear
  /** The index of its adapter, and that adapter's weight. */
  readonly adapter: number
  readonly weight: number
}

export async function readQuantized({ share, at }: QuantizedPart): Promise<QuantizedLayer> {
  const { adapter, index, weight } = share
  const { part: name, linear, expert } = at
  const read = await adapter.read(name)
  const layer =
    expert !== undefined
      ? layerOfExpert(read as ExpertLora, at)
      : read.kind === 'embedding'
        ? read.product
        : layerOfPart({ ...at, k: linear.k, layer: read as LoraLayer })
  return { adapter: index, name, layer, linear, weight }
}

/** Adds branches to the graph. All branches of an adapter get the same number. */
export async function mergeBranches(model: OnnxModel, graph: Graph, layers: readonly QuantizedLayer[]): Promise<void> {
  const first = findBranches(graph).reduce((next, { number }) => Math.max(next, number + 1), 0)
  for (const [i, ofAdapter] of [...groupBy(layers, ({ adapter }) => adapter).values()].entries()) {
    const values: { linear: Linear; values: BranchValues }[] = []
    for (const { linear, layer, weight } of ofAdapter) {
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

/** Refuses DoRA together with another change of the same outputs: DoRA's norm is of W + s·B·A of one adapter. */
export function refuseDoraSums(graph: Graph, layers: readonly QuantizedLayer[]): void {
  const taken = new Set(findBranches(graph).flatMap(({ factors }) => factors.map(({ module }) => module)))
  const byName = groupBy(layers, ({ linear }) => linear.name)
  for (const { name, layer, linear, adapter: index } of layers) {
    const isAlone = !taken.has(linear.name) && byName.get(linear.name)!.every(({ adapter }) => adapter === index)
    if (layer.magnitude === undefined || isAlone) continue
    const what = 'a DoRA layer and another adapter’s layer beside one weight cannot be merged together'
    throw new UnsupportedError({ where: name, what, hint: 'Merge it alone, into a graph without other adapters' })
  }
}
