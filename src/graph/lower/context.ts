// What a lowering sees and gives.

import { UnsupportedError } from '../../base/errors.js'
import type { NodeProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { Builder, Value } from '../builder.js'
import type { Graph } from '../graph.js'

export interface LoweringContext {
  /** Appends nodes whose names begin with the lowered node's. */
  readonly g: Builder
  readonly node: NodeProto
  /** The node's inputs; '' where an optional one is absent. */
  readonly inputs: readonly Value[]
  /** Whether an output is read by a node or is one of the graph's. */
  reads(output: number): boolean
  /** What all nodes that name the same key share, made at the first. */
  shared(key: string, make: () => Value): Value
}

/** The values that replace the node's outputs, in order; undefined only for outputs that nobody reads. */
export type Lowering = (context: LoweringContext) => (Value | undefined)[]

/** @throws UnsupportedError naming the node, its op and what about it has no lowering */
export function refuse({ node }: LoweringContext, what: string): never {
  throw new UnsupportedError({ where: describe(node), what })
}

export function describe(node: NodeProto): string {
  return `${node.opType} ${node.name || node.output[0]}`
}

/** Refuses the inputs at these places, where they are given. */
export function refuseInputs(context: LoweringContext, names: Readonly<Record<number, string>>): void {
  for (const [place, name] of Object.entries(names)) {
    if (context.inputs[Number(place)]) refuse(context, `training with its input ${name} is not implemented`)
  }
}

/** The number of axes of a value, as far as the graph's inputs, initializers and plain nodes tell. */
export function rankIn(graph: Graph, value: Value): number | undefined {
  const tensor = graph.constant(value)
  if (tensor !== undefined) return tensor.dims.length
  const type = graph.inputs.find(({ name }) => name === value)?.type?.value
  if (type?.case === 'tensorType') return type.value.shape?.dim.length
  const maker = graph.producer(value)
  switch (maker?.opType) {
    case 'Cast':
    case 'Identity':
      return rankIn(graph, maker.input[0])
    case 'Transpose':
      return maker.attribute.find(({ name }) => name === 'perm')?.ints.length
    case 'Reshape':
    case 'Expand': {
      const dims = graph.constant(maker.input[1])?.dims
      return dims === undefined ? undefined : Number(dims[0])
    }
    default:
      return undefined
  }
}
