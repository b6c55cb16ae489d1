// The loss over a large vocabulary in one Scan over blocks of rows, which gives losses and gradients at once, so that
// no logits live longer than their block. TRL's chunked loss:
// https://huggingface.co/docs/trl/main/en/reducing_memory_usage

import {
  TensorProto_DataType as DataType,
  type GraphProto,
  type NodeProto,
  type ValueInfoProto,
} from '../../formats/onnx/gen/onnx_pb.js'
import { dimsOf } from '../../formats/onnx/tensors.js'
import { sourceOf } from '../fuse/patterns.js'
import { rowLosses } from '../gradients/losses.js'
import { valueInfo } from '../inject/inject.js'
import { type LOGIT_BYTES, rowsOfBlock } from '../memory.js'
import { floatAttribute, intAttribute } from '../view/attributes.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import type { LossOfRows, ObjectiveGraph } from './objective-graph.js'

/** Only large logits from a float weight that is not trained: gradients of an adapted output layer need logits. */
export function lossInBlocks(own: ObjectiveGraph, bytes: typeof LOGIT_BYTES, hasGradients: boolean): void {
  for (const loss of own.losses) {
    const head = headOf(own.graph, loss.logits)
    const rows = rowsOfBlock(head?.d ?? 0, bytes)
    if (head !== undefined && Number.isFinite(rows)) replace(own, loss, head, { rows, hasGradients })
  }
}

interface Head {
  /** (m, k) */
  readonly x: Value
  readonly weight: Value
  readonly bias: Value | undefined
  readonly transB: number
  readonly k: number
  readonly d: number
}

/** The output layer that gives these logits as they are, if it is one product by a constant. */
function headOf(graph: Graph, logits: Value): Head | undefined {
  const node = graph.producer(sourceOf(graph, logits, ['Cast', 'Identity']).value)
  if (node?.opType !== 'Gemm' || intAttribute(node, 'transA', 0) === 1) return undefined
  if (floatAttribute(node, 'alpha', 1) !== 1 || floatAttribute(node, 'beta', 1) !== 1) return undefined
  const [x, weight, bias] = node.input
  const tensor = graph.constant(sourceOf(graph, weight, ['Cast', 'Identity']).value)
  if (tensor?.dims.length !== 2 || (bias !== undefined && graph.constant(bias) === undefined)) return undefined
  const transB = intAttribute(node, 'transB', 0)
  const [k, d] = transB === 1 ? dimsOf(tensor).toReversed() : dimsOf(tensor)
  return { x, weight, bias, transB, k, d }
}

function replace(
  { graph, g, customGradients }: ObjectiveGraph,
  { logits, targets, losses, sum, scaled }: LossOfRows,
  head: Head,
  { rows, hasGradients }: { rows: number; hasGradients: boolean },
): void {
  const { x, k, d } = head
  const largest = graph.consumers(logits).find(({ opType }) => opType === 'ArgMax')?.output[0]
  const given = ['losses', ...(hasGradients ? ['gradients'] : []), ...(largest === undefined ? [] : ['largest'])]
  const count = g.length(x, 0)
  const ceil = (a: Value, b: Value) => g.div(g.sub(g.add(a, b), g.int([1])), b)
  const blocks = ceil(count, g.int([rows]))
  const size = ceil(count, blocks)
  // Blocks of one size: some more rows fill up the last one, and what comes of them is cut off.
  const missing = g.sub(g.mul(blocks, size), count)
  const filled = (value: Value, zero: Value) =>
    g.op('Pad', [value, g.concat([g.int([0, 0]), missing, g.int([0])], 0), zero])
  const parted = (value: Value, width: number) => g.reshape(value, g.concat([blocks, size, g.int([width])], 0))
  // The numbers of rows begin anew in each block.
  const pairs = g.op('Mod', [filled(targets, g.int(0)), g.concat([size, g.int([d])], 0)])
  const inputs = [parted(filled(x, g.float(0)), k), parted(pairs, 2)]
  const scan = g.node('Scan', inputs, { body: bodyOf(graph, head, given), num_scan_inputs: 2 }, given.length)
  const whole = (by: Builder, name: string, shape: readonly number[]) => {
    const joined = by.reshape(scan.output[given.indexOf(name)], by.int(shape))
    return by.op('Slice', [joined, by.int([0]), count, by.int([0])])
  }
  const all = whole(g, 'losses', [-1])
  graph.replaceUses(losses, all)
  if (largest !== undefined) graph.replaceUses(largest, whole(g, 'largest', [-1]))
  if (!hasGradients) return
  customGradients.delete(losses)
  customGradients.set(sum ?? all, {
    inputs: [x],
    rule: ({ g, dy }) => [() => scaled(g, whole(g, 'gradients', [-1, k]), dy)],
  })
}

/** From rows of x and their targets to what is given of them. The weight is that of the outer graph. */
function bodyOf(outer: Graph, { x, weight, bias, transB, k }: Head, given: readonly string[]): GraphProto {
  const body = outer.newBody()
  const g = new Builder(body, outer.freshName('loss/block'))
  const [rows, pairs] = [body.freshName(`${g.scope}/${x}`), body.freshName(`${g.scope}/targets`)]
  body.inputs = [valueInfo(rows, DataType.FLOAT, ['rows', k]), valueInfo(pairs, DataType.INT64, ['rows', 2])]
  const logits = g.op('Gemm', bias === undefined ? [rows, weight] : [rows, weight, bias], { transB })
  const { losses, slopes } = rowLosses(g, logits, pairs)
  const outputs: Record<string, () => ValueInfoProto> = {
    losses: () => valueInfo(losses, DataType.FLOAT, ['rows']),
    gradients: () => valueInfo(g.op('Gemm', [slopes(g), weight], { transB: 1 - transB }), DataType.FLOAT, ['rows', k]),
    largest: () => valueInfo(g.op('ArgMax', [logits], { axis: 1, keepdims: 0 }), DataType.INT64, ['rows']),
  }
  body.outputs = given.map((name) => outputs[name]())
  // ONNX Runtime begins with the last node that nobody reads: what reads the logits alone comes first, so that the
  // probabilities take their place.
  for (const { name } of body.outputs.filter((_, i) => given[i] !== 'gradients')) {
    const node = body.producer(name) as NodeProto
    body.remove(node)
    body.add(node)
  }
  return body.toModel().graph as GraphProto
}
