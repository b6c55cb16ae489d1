// What a step adds to a key-value cache, as an output of its own. Whoever keeps the cache writes these few rows behind those that it has,
// so that a step gives out no copy of the whole cache, and the arrays that are fed may have room for tokens to come.

import { create } from '@bufbuild/protobuf'
import { type NodeProto, ValueInfoProtoSchema } from '../../formats/onnx/gen/onnx_pb.js'
import { isCacheInput } from '../inputs/cache.js'
import { dimsOfInput, splitInputs } from '../inputs/roles.js'
import { Builder, sharedValue, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** One tensor of the cache: (batch, heads, past, size). */
export interface CachePart {
  /** Name of the input. */
  readonly past: string
  readonly heads: number
  readonly size: number
}

/** An output (batch, sequence, width). Each row holds the parts side by side, (heads, size) of each. */
export interface NewRows {
  readonly output: string
  /** The inputs that tell how many tokens there are: (batch, sequence) and (batch, past + sequence). */
  readonly ids: string
  readonly mask: string
  readonly parts: readonly CachePart[]
}

/**
 * Adds the output to a graph whose attention was fused. How many tokens the cache holds is then told by the mask, and no longer by the
 * lengths of the cache's arrays.
 *
 * @returns undefined where something else reads the cache, or no mask tells the length: the graph stays as it is
 */
export function giveNewRows(graph: Graph): NewRows | undefined {
  const { roles, others } = splitInputs(graph)
  const named = (wanted: string) => roles.find(({ role, rank }) => role === wanted && rank === 2)?.name
  const [ids, mask] = [named('inputIds'), named('attentionMask')]
  const made = new Map<string, Value>()
  for (const { opType, input } of graph.nodes) {
    if (opType !== 'GroupQueryAttention') continue
    made.set(input[3], input[1])
    made.set(input[4], input[2])
  }
  const inputs = others.filter(isCacheInput)
  const isKnown = ({ name }: { name: string }) => (made.get(name) ?? '') !== '' && graph.consumers(name).every(isReader)
  if (ids === undefined || mask === undefined || inputs.length === 0 || !inputs.every(isKnown)) return undefined
  const parts = inputs.map((input): CachePart => {
    const [, heads, , size] = dimsOfInput(input)
    return { past: input.name, heads: heads!, size: size! }
  })
  const g = new Builder(graph, 'cache')
  const shared = new Map<string, Value>()
  for (const part of parts) countByMask(g, part, ids, mask, shared)
  const output = g.op(
    'Concat',
    parts.map(({ past }) => made.get(past)!),
    { axis: 2 },
    'new_rows',
  )
  graph.outputs.push(create(ValueInfoProtoSchema, { name: output }))
  return { output, ids, mask, parts }
}

/** Attention itself, and what asks for the shape alone. */
function isReader({ opType, attribute }: NodeProto): boolean {
  return opType === 'GroupQueryAttention' || (opType === 'Shape' && attribute.length === 0)
}

/** Lets what asks for the shape of a part get that of the tokens in it. */
function countByMask(g: Builder, part: CachePart, ids: Value, mask: Value, shared: Map<string, Value>): void {
  const { graph } = g
  for (const reader of graph.consumers(part.past).filter(({ opType }) => opType === 'Shape')) {
    const shape = sharedValue(shared, `${part.heads} ${part.size}`, () => {
      const of = (value: Value, axis: number) => g.op('Gather', [g.shape(value), g.int([axis])])
      const past = sharedValue(shared, 'past', () => g.sub(of(mask, 1), of(ids, 1)))
      return g.concat([of(mask, 0), g.int([part.heads]), past, g.int([part.size])], 0)
    })
    graph.replaceUses(reader.output[0], shape)
  }
}
