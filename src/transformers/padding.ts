// Rows that transformers.js fills up on the left, where GroupQueryAttention counts keys from the left: the keys that
// fill up are counted too, and a bias hides them.
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention

import { UnsupportedError } from '../base/errors.js'
import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { Builder } from '../graph/view/builder.js'
import type { Graph } from '../graph/view/graph.js'
import { countsKeysFromLeft } from '../infer/generate/batching.js'
import type { Feeds } from '../runtime/runtime.js'

const MASK = 'attention_mask'

const [SEQLENS, BIAS] = [5, 10]

/** Providers whose GroupQueryAttention takes a bias. */
const TAKES_BIAS = new Set(['cpu', 'wasm'])

/** Far below all scores, and finite, so that rows of nothing else stay finite. */
const HIDDEN = { [DataType.FLOAT]: -1e9, [DataType.FLOAT16]: -3e4 } as const

export function paddingPlan(graph: Graph, device: string): { edit?: typeof hidePadding; check(feeds: Feeds): void } {
  if (!countsKeysFromLeft(graph)) return { check() {} }
  const isMasked = graph.inputs.some(({ name }) => name === MASK)
  if (TAKES_BIAS.has(device) && isMasked) return { edit: hidePadding, check() {} }
  return {
    check({ [MASK]: mask }) {
      if (mask === undefined || (mask.data as ArrayLike<unknown>).length === 0) return
      if (!Array.from(mask.data as BigInt64Array).some((value) => Number(value) === 0)) return
      throw new UnsupportedError({
        where: 'GroupQueryAttention',
        what: 'texts of different lengths cannot share a batch with this graph on this device',
        got: device,
        hint: 'Call the pipeline for one text at a time, or open it with device: cpu (in pages wasm)',
      })
    },
  }
}

function hidePadding(graph: Graph): void {
  const nodes = graph.nodes.filter(({ opType, input }) => opType === 'GroupQueryAttention' && !input[BIAS])
  const g = new Builder(graph, 'padding')
  const dimOf = (value: string, axis: number) => g.op('Gather', [g.shape(value), g.int([axis])], { axis: 0 })
  const [batch, total, sequence] = [dimOf(MASK, 0), dimOf(MASK, 1), dimOf('input_ids', 1)]
  const lengths = g.cast(g.expand(g.sub(total, g.int([1])), batch), DataType.INT32)
  const shape = g.concat([batch, g.int([1]), sequence, total], 0)
  const biases = new Map<DataType, string>()
  const biasOf = (type: keyof typeof HIDDEN) => {
    const isHidden = g.sub(g.float(1), g.cast(MASK, DataType.FLOAT))
    const row = g.cast(g.mul(isHidden, g.float(HIDDEN[type])), type)
    return g.expand(g.unsqueeze(row, [1, 2]), shape)
  }
  for (const node of nodes) {
    const isHalf = graph.declared(node.input[3])?.elemType === DataType.FLOAT16
    const type = isHalf ? DataType.FLOAT16 : DataType.FLOAT
    const bias = biases.get(type) ?? biasOf(type)
    biases.set(type, bias)
    const inputs = Array.from({ length: Math.max(node.input.length, BIAS + 1) }, (_, i) => node.input[i] ?? '')
    inputs[SEQLENS] = lengths
    inputs[BIAS] = bias
    graph.setInputs(node, inputs)
  }
}
