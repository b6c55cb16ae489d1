// Merging into layers whose weights are integers: by default they stay, and the factors stand beside them as constants.

import { sameBytes } from '../../base/bytes.js'
import { MismatchError, UnsupportedError } from '../../base/errors.js'
import { groupBy } from '../../base/group.js'
import { transpose } from '../../base/tensor.js'
import type { TensorProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { addBranches, type BranchValues, branchTensors, FACTOR_TYPES } from '../../graph/inject/add-branches.js'
import { affineOf, weightBlocks } from '../../graph/inject/affine.js'
import type { Linear } from '../../graph/match/linears.js'
import { findBranches, type MergedBranch, removeBranch } from '../../graph/match/merged-branches.js'
import { layerOfPart } from '../../graph/match/packed.js'
import type { Graph } from '../../graph/view/graph.js'
import { normOfProduct } from '../../linalg/product.js'
import { StoredDelta } from '../../lora/delta.js'
import type { LoraLayer } from '../../lora/layer.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import type { GraphShare } from '../plan/adapters.js'
import type { LayerChange } from '../report.js'

/**
 * The treatment of quantized weights: `branches` leaves them and adds the factors beside them; `requantize` quantizes W
 * + s·B·A again, in the same layout.
 */
export type QuantizedPolicy = 'branches' | 'requantize'

export interface QuantizedPart {
  readonly share: GraphShare
  readonly name: string
  readonly part: { readonly name: string; readonly d: number; readonly start: number }
  readonly linear: Linear
}

export type QuantizedLayer = Awaited<ReturnType<typeof readQuantized>>

/** Reads a layer's values. The weight of an unmerge has the other sign. */
export async function readQuantized({ share, name, part, linear }: QuantizedPart) {
  const { adapter, index, weight } = share
  const own = await adapter.read(name)
  const layer = own.kind === 'embedding' ? own.product : layerOfPart({ ...part, k: linear.k, layer: own as LoraLayer })
  return { adapter: index, name, layer, linear, weight }
}

/** Each adapter's branches have one number. */
export async function mergeBranches(
  model: OnnxModel,
  graph: Graph,
  layers: readonly QuantizedLayer[],
  stored: 'fp32' | 'fp16' | undefined,
): Promise<void> {
  const present = findBranches(graph)
  const first = present.reduce((next, { number }) => Math.max(next, number + 1), 0)
  refuseDoraSums(layers, present)
  for (const [i, own] of byAdapter(layers).entries()) {
    const values: { linear: Linear; values: BranchValues }[] = []
    for (const { linear, layer, weight } of own) {
      values.push({ linear, values: await branchValues(model, graph, linear, layer, weight) })
    }
    addBranches(graph, values, first + i, stored)
  }
}

/**
 * Takes the branches of each adapter out. Throws MismatchError when the graph has no branches with these very values.
 */
export async function unmergeBranches(
  model: OnnxModel,
  graph: Graph,
  layers: readonly QuantizedLayer[],
): Promise<void> {
  for (const own of byAdapter(layers)) {
    const branches = findBranches(graph)
    const wanted = new Map<string, { linear: Linear; values: BranchValues }>()
    for (const { linear, layer, weight } of own) {
      if (wanted.has(linear.name)) continue
      wanted.set(linear.name, { linear, values: await branchValues(model, graph, linear, layer, -weight) })
    }
    const number = await findNumber(model, graph, branches, [...wanted.values()])
    if (number === undefined) {
      throw new MismatchError({
        where: own[0].name,
        what: 'the graph has no branches with this adapter’s values beside its quantized weights',
        got:
          branches.length === 0
            ? 'no branches'
            : `branches of ${new Set(branches.map((one) => one.number)).size} adapters`,
        hint: 'Give the same adapters and weights as for the merge. A weight that was quantized again cannot be unmerged',
      })
    }
    for (const branch of branches) if (branch.number === number) removeBranch(graph, branch)
  }
}

async function findNumber(
  model: OnnxModel,
  graph: Graph,
  branches: readonly MergedBranch[],
  wanted: readonly { readonly linear: Linear; readonly values: BranchValues }[],
): Promise<number | undefined> {
  for (const number of new Set(branches.map((branch) => branch.number))) {
    const modules = new Set(
      branches.flatMap((branch) => (branch.number === number ? branch.factors.map(({ module }) => module) : [])),
    )
    if (modules.size !== wanted.length || wanted.some(({ linear }) => !modules.has(linear.name))) continue
    let isSame = true
    for (const { linear, values } of wanted) isSame &&= await hasValues(model, graph, linear, values, number)
    if (isSame) return number
  }
  return undefined
}

async function hasValues(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  values: BranchValues,
  number: number,
): Promise<boolean> {
  const first = graph.initializers.get(`lora/${number}/${linear.name}/A`) as TensorProto
  const stored = first.dataType === FACTOR_TYPES.fp16 ? 'fp16' : 'fp32'
  const { tensors } = branchTensors(linear, values, number, stored)
  for (const [name, { dims, bytes }] of tensors) {
    const tensor = graph.initializers.get(name)
    if (tensor === undefined || tensor.dims.map(Number).join() !== dims.join()) return false
    if (!sameBytes(await model.readTensor(tensor), bytes)) return false
  }
  return true
}

function byAdapter(layers: readonly QuantizedLayer[]): QuantizedLayer[][] {
  return [...groupBy(layers, ({ adapter }) => adapter).values()]
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
function refuseDoraSums(layers: readonly QuantizedLayer[], present: readonly MergedBranch[]): void {
  const taken = new Set(present.flatMap(({ factors }) => factors.map(({ module }) => module)))
  const byName = groupBy(layers, ({ linear }) => linear.name)
  for (const { name, layer, linear, adapter: own } of layers) {
    if (layer.magnitude === undefined) continue
    const isAlone = byName.get(linear.name)!.every(({ adapter }) => adapter === own)
    if (isAlone && !taken.has(linear.name)) continue
    throw new UnsupportedError({
      where: name,
      what: 'a DoRA layer and another adapter’s layer beside one weight cannot be merged together',
      hint: taken.has(linear.name) ? 'Unmerge the other adapter first' : 'Merge one of the adapters alone',
    })
  }
}

/** ‖s·B·A‖ / ‖W‖, or what DoRA changes; NaN where the weight cannot be read. */
export async function branchChange(model: OnnxModel, graph: Graph, one: QuantizedLayer): Promise<LayerChange> {
  const { name, layer, linear, weight } = one
  if (linear.problem !== undefined) return { name, relativeChange: Number.NaN }
  const { transposed, k, d } = linear
  const scale = layer.magnitude === undefined ? undefined : (await affineOf(model, graph, linear, layer))?.scale
  const delta = new StoredDelta(layer, weight * layer.scaling, !transposed)
  let [base, change] = [0, 0]
  for await (const { block, row } of weightBlocks(model, graph, linear)) {
    const values = block.data
    for (const value of values) base += value * value
    if (scale === undefined) continue
    const sum = delta.addTo({ data: values.slice(), shape: block.shape }, row).data
    for (let i = 0; i < values.length; i++) {
      const output = transposed ? row + Math.floor(i / k) : i % d
      change += (scale[output] * sum[i] - values[i]) ** 2
    }
  }
  const norm =
    scale === undefined
      ? Math.abs(weight * layer.scaling) * normOfProduct(layer.weightB, layer.weightA)
      : Math.sqrt(change)
  return { name, relativeChange: norm === 0 ? 0 : norm / Math.sqrt(base) }
}
