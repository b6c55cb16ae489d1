// One vector for a text from those of its tokens: in the graph, so that gradients pass. Training and sessions use the
// same.

import { UnsupportedError } from '../../base/errors.js'
import { TensorProto_DataType as DataType } from '../../formats/onnx/gen/onnx_pb.js'
import { POOLINGS, type Pooling, type SentenceModules } from '../../graph/sentence-modules.js'
import type { Builder, Value } from '../../graph/view/builder.js'
import type { Graph } from '../../graph/view/graph.js'

/** Names that exporters give to the hidden states (batch, sequence, k), best first. */
export const HIDDEN_OUTPUTS: readonly string[] = ['last_hidden_state', 'token_embeddings']

export function poolingOf({ pooling, others }: SentenceModules): Pooling {
  const [other] = others
  const known = POOLINGS.find((one) => one === pooling)
  if (other === undefined && known !== undefined) return known
  throw new UnsupportedError({
    where: other === undefined ? '1_Pooling/config.json' : 'modules.json',
    what: 'this way from tokens to one vector is not implemented',
    expected: 'pooling by mean or cls, and Normalize',
    got: other ?? pooling,
  })
}

export function tokenVectors(graph: Graph): Value {
  const found = graph.outputs.find(({ name }) => HIDDEN_OUTPUTS.includes(name))
  if (found !== undefined) return found.name
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'it gives no vectors of tokens',
    expected: `an output ${HIDDEN_OUTPUTS.join(' or ')}`,
    got: graph.outputs.map(({ name }) => name).join(', '),
    hint: 'Export the encoder alone: optimum-cli export onnx --task feature-extraction',
  })
}

/** (batch, k): the mean of the vectors of real tokens, or the first one. `mask`: (batch, sequence). */
export function appendPooling(g: Builder, vectors: Value, mask: Value, pooling: Pooling): Value {
  if (pooling === 'cls') return g.op('Gather', [vectors, g.int(0)], { axis: 1 })
  const weights = g.unsqueeze(g.cast(mask, DataType.FLOAT), [2])
  return g.div(g.reduceSum(g.mul(vectors, weights), [1], 0), g.reduceSum(weights, [1], 0))
}
