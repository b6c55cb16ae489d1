// The context that a lowering gets, the form of its result, and what it can find out about values from the graph.

import { UnsupportedError } from '../../core/base/errors.js'
import { DataType, type NodeProto } from '../format/tensors.js'
import type { CustomGradient } from '../gradients/backward.js'
import { LAYOUT } from '../gradients/layout.js'
import { intAttribute, intsAttribute } from '../view/attributes.js'
import type { Builder, Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { labelOf, PREDICATES } from '../view/operators.js'

export interface LoweringContext {
  /** Appends nodes. Their names begin with the name of the lowered node. */
  readonly g: Builder
  readonly node: NodeProto
  /** The node's inputs; '' if an optional input is missing. */
  readonly inputs: readonly Value[]
  readonly shared: (key: string, make: () => Value) => Value
  /** Sets a gradient rule for `value`, the first output of its node, with respect to `inputs`. */
  readonly gradient: (value: Value, inputs: CustomGradient['inputs'], rule: CustomGradient['rule']) => void
}

/** Appends the replacement of a node, and returns its outputs in order. Outputs that no node reads may be undefined. */
export type Lowering = (context: LoweringContext) => (Value | undefined)[]

export function refuse({ node }: LoweringContext, what: string): never {
  throw new UnsupportedError({ where: labelOf(node), what })
}

export function refuseInputs(context: LoweringContext, names: Readonly<Record<number, string>>): void {
  for (const [place, name] of Object.entries(names)) {
    if (context.inputs[Number(place)]) refuse(context, `training with its input ${name} is not implemented`)
  }
}

/** The dimensions of a value, as far as declared shapes or earlier nodes tell. Undefined entries are unknown. */
export function dimsIn(graph: Graph, value: Value): readonly (number | undefined)[] | undefined {
  const dims = graph.declared(value)?.dims ?? graph.constant(value)?.dims.map(Number)
  if (dims !== undefined) return dims
  const maker = graph.producer(value)
  if (maker === undefined) return undefined
  const before = () => dimsIn(graph, maker.input[0])
  switch (maker.opType) {
    case 'Cast':
    case 'Identity':
    case 'RotaryEmbedding':
      return before()
    case 'Transpose': {
      const known = before()
      return intsAttribute(maker, 'perm')?.map((axis) => known?.[axis])
    }
    case 'Reshape':
      return graph.integers(maker.input[1])?.map((dim) => (dim > 0 ? dim : undefined))
    case 'ReduceSum': {
      const summed = graph.integers(maker.input[1]) ?? intsAttribute(maker, 'axes')
      const known = before()
      const isFlat = summed !== undefined && intAttribute(maker, 'keepdims', 1) === 0
      return isFlat
        ? known?.filter((_, axis) => !summed.includes(axis) && !summed.includes(axis - known.length))
        : undefined
    }
    case 'EmbedLayerNormalization':
      // The operator's outputs are hidden states, the number of tokens of each row, and the sum of the embeddings. Only
      // the second has a size that is known here: the batch.
      return maker.output.indexOf(value) === 1 ? before()?.slice(0, 1) : undefined
    default:
      return undefined
  }
}

/** Operators that pass on or move the elements of their first input. */
const MOVES: ReadonlySet<string> = new Set([...Object.keys(LAYOUT), 'Identity'])

/** True if a mask holds booleans, false if it holds numbers to add, undefined if the graph does not tell. */
export function isTruth(graph: Graph, value: Value): boolean | undefined {
  const type = graph.declared(value)?.elemType ?? graph.constant(value)?.dataType
  if (type !== undefined) return type === DataType.BOOL
  const maker = graph.producer(value)
  if (maker === undefined) return undefined
  if (PREDICATES.includes(maker.opType)) return true
  if (maker.opType === 'Cast') return intAttribute(maker, 'to', 0) === DataType.BOOL
  if (maker.opType === 'Where') return isTruth(graph, maker.input[1]) ?? isTruth(graph, maker.input[2])
  if (MOVES.has(maker.opType)) return isTruth(graph, maker.input[0])
  return ['Add', 'Mul', 'Sub'].includes(maker.opType) ? false : undefined
}
