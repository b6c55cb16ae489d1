// Merging into quantized weights themselves: the sum, or DoRA's scaling of it, is quantized again in the same layout.

import { concatBytes } from '../../base/bytes.js'
import { decodeFloats, encodeFloats } from '../../base/dtype.js'
import { NumericError, UnsupportedError } from '../../base/errors.js'
import { groupBy } from '../../base/group.js'
import { isAllFinite, type Matrix } from '../../base/tensor.js'
import type { NodeProto, TensorProto } from '../../formats/onnx/gen/onnx_pb.js'
import { copyMessage } from '../../formats/onnx/messages.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { bytesOf } from '../../formats/onnx/tensors.js'
import { affineOf } from '../../graph/inject/affine.js'
import { FLOAT_DTYPES } from '../../graph/match/forms/float-product.js'
import type { ReadLines } from '../../graph/match/forms/form.js'
import { blockLayout, hasFloatZeroPoints, MATMUL_NBITS } from '../../graph/match/forms/matmul-nbits.js'
import { type QuantizedRows, quantizeRows } from '../../graph/match/forms/quantize-blocks.js'
import { findBranches } from '../../graph/match/merged-branches.js'
import type { Graph } from '../../graph/view/graph.js'
import { StoredDelta } from '../../lora/delta.js'
import type { LayerChange } from '../report.js'
import type { QuantizedLayer } from './quantized.js'

/** 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

/** Inputs of MatMulNBits. */
const [WEIGHT, SCALES, ZERO_POINTS] = [1, 2, 3]

/** Returns writers by the names of initializers. `report` gets each layer's change when its weight is written. */
export function planRequantization(
  model: OnnxModel,
  graph: Graph,
  layers: readonly QuantizedLayer[],
  report: (change: LayerChange) => void,
): Map<string, () => Promise<Uint8Array>> {
  const writers = new Map<string, () => Promise<Uint8Array>>()
  for (const [node, own] of groupBy(layers, ({ linear }) => linear.node)) {
    checkNode(graph, node, own)
    const names = [WEIGHT, SCALES, ZERO_POINTS].filter((input) => (node.input[input] ?? '') !== '')
    const source = { weight: graph.constant(node.input[WEIGHT]), scales: graph.constant(node.input[SCALES]) }
    const dtype = FLOAT_DTYPES[(source.scales as TensorProto).dataType] as 'fp32' | 'fp16' | 'bf16'
    // Read before the node's inputs change.
    const reader = own[0].linear.form.openLines(model, graph, own[0].linear)
    reader.catch(() => {})
    let pending: ReturnType<typeof newWeight> | undefined
    let readers = names.length
    const take = async () => {
      pending ??= reader.then((read) => newWeight(model, graph, own, read, dtype))
      const result = await pending
      if (--readers > 0) return result
      // The last of the tensors is written.
      pending = undefined
      result.changes.forEach(report)
      return result
    }
    for (const input of names) {
      const name = ownTensor(graph, node, input)
      writers.set(name, async () => {
        const { packed, scales, zeroPoints } = (await take()).rows
        if (input === WEIGHT) return packed
        return input === SCALES ? encodeFloats(scales, dtype) : (zeroPoints as Uint8Array)
      })
    }
  }
  graph.invalidate()
  return writers
}

function checkNode(graph: Graph, node: NodeProto, own: readonly QuantizedLayer[]): void {
  const [{ name, linear }] = own
  const where = `node ${node.name}`
  const hint = "Merge with `quantized: 'branches'`"
  if (linear.form !== MATMUL_NBITS) {
    const what = 'weights of this form are not quantized again'
    throw new UnsupportedError({ where, what, expected: MATMUL_NBITS.name, got: linear.form.name, hint })
  }
  if (linear.problem !== undefined || hasFloatZeroPoints(graph, node)) {
    const what = `its weight cannot be quantized again: ${linear.problem ?? 'its zero points are floats'}`
    throw new UnsupportedError({ where, what, got: linear.layout, hint })
  }
  if (findBranches(graph).some(({ factors }) => factors.some(({ module }) => module === linear.name))) {
    const what = 'branches of an earlier merge stand beside this weight'
    throw new UnsupportedError({ where: name, what, hint: 'Unmerge them first, or add branches' })
  }
}

/** The node's own copy of a tensor that others may read. */
function ownTensor(graph: Graph, node: NodeProto, input: number): string {
  const name = node.input[input]
  const isShared =
    !graph.initializers.has(name) || graph.nodes.some((other) => other !== node && other.input.includes(name))
  if (!isShared) return name
  const copy = graph.freshName(`${name}/merged`)
  graph.addInitializer(copyMessage(graph.constant(name) as TensorProto, { name: copy }))
  node.input[input] = copy
  return copy
}

async function newWeight(
  model: OnnxModel,
  graph: Graph,
  layers: readonly QuantizedLayer[],
  read: ReadLines,
  dtype: 'fp32' | 'fp16' | 'bf16',
) {
  const { node, k } = layers[0].linear
  const layout = blockLayout(node)
  const hasZeroPoints = (node.input[ZERO_POINTS] ?? '') !== ''
  const roundScale = (scale: number) => decodeFloats(encodeFloats(Float32Array.of(scale), dtype), dtype)[0]
  const parts = []
  for (const { name, layer, linear, weight } of layers) {
    parts.push({
      name,
      start: linear.fused?.start ?? 0,
      d: linear.d,
      delta: new StoredDelta(layer, weight * layer.scaling, false),
      scale: layer.magnitude && (await affineOf(model, graph, linear, layer))?.scale,
      sums: { base: 0, change: 0, error: 0 },
    })
  }
  const pieces: QuantizedRows[] = []
  const rows = Math.max(1, Math.floor(BLOCK_ELEMENTS / k))
  for (let first = 0; first < layout.d; first += rows) {
    const count = Math.min(rows, layout.d - first)
    const base = await read(first, count)
    const values = base.slice()
    for (const part of parts) {
      const [from, to] = [Math.max(first, part.start), Math.min(first + count, part.start + part.d)]
      if (from >= to) continue
      const data = values.subarray((from - first) * k, (to - first) * k)
      const block: Matrix = { data, shape: [to - from, k] }
      const sum = part.delta.addTo(block, from - part.start).data
      for (let i = 0; i < data.length; i++) {
        data[i] = part.scale === undefined ? sum[i] : part.scale[from - part.start + Math.floor(i / k)] * sum[i]
      }
    }
    if (!isAllFinite(values)) {
      throw new NumericError({
        where: layers[0].name,
        what: 'the merged weight is not finite',
        hint: 'Check the adapter: its values are too large, or the base weight is damaged',
      })
    }
    const { stored, ...piece } = quantizeRows(values, layout, hasZeroPoints, roundScale)
    pieces.push(piece)
    for (const { start, d, sums } of parts) {
      const [from, to] = [Math.max(first, start), Math.min(first + count, start + d)]
      for (let i = (from - first) * k; i < (to - first) * k; i++) {
        sums.base += base[i] ** 2
        sums.change += (values[i] - base[i]) ** 2
        sums.error += (stored[i] - values[i]) ** 2
      }
    }
  }
  return {
    rows: joined(pieces),
    changes: parts.map(({ name, sums: { base, change, error } }) => ({
      name,
      relativeChange: change === 0 ? 0 : Math.sqrt(change / base),
      quantizationError: error === 0 ? 0 : Math.sqrt(error / base),
    })),
  }
}

function joined(pieces: readonly QuantizedRows[]): QuantizedRows {
  const zeroPoints = pieces.flatMap((piece) => piece.zeroPoints ?? [])
  return {
    packed: concatBytes(pieces.map(({ packed }) => packed)),
    scales: decodeFloats(concatBytes(pieces.map(({ scales }) => bytesOf(scales))), 'fp32'),
    zeroPoints: zeroPoints.length === 0 ? undefined : concatBytes(zeroPoints),
  }
}
