// Appends nodes to a graph, valid from opset 13 on, where Squeeze, Unsqueeze and ReduceSum take axes as inputs.

import { create } from '../format/protobuf.js'
import { DataType, type NodeProto, NodeProtoSchema, type TensorProto, TensorProtoSchema } from '../format/tensors.js'
import { type Attributes, makeAttribute } from './attributes.js'
import type { Graph } from './graph.js'

export type Value = string

/** Appends nodes to a graph. Equal constants are made once. */
export class Builder {
  readonly #constants = new Map<string, Value>()

  constructor(
    readonly graph: Graph,
    /** Prefix of the names of new nodes and values, for readable graphs, such as 'backward'. */
    readonly scope: string,
    readonly floatType: typeof DataType.FLOAT | typeof DataType.DOUBLE = DataType.FLOAT,
  ) {}

  op(opType: string, inputs: readonly Value[], attributes: Attributes = {}, hint?: string): Value {
    return this.node(opType, inputs, attributes, 1, hint).output[0]
  }

  /** `opType` is 'domain:type' outside the standard domain. */
  node(opType: string, inputs: readonly Value[], attributes: Attributes = {}, outputs = 1, hint?: string): NodeProto {
    const [type, domain = ''] = opType.split(':').reverse()
    const name = this.graph.freshName(`${this.scope}/${hint ?? type}`)
    const node = create(NodeProtoSchema, {
      name,
      opType: type,
      domain,
      input: [...inputs],
      output: Array.from({ length: outputs }, (_, i) =>
        this.graph.freshName(outputs === 1 ? `${name}:0` : `${name}:${i}`),
      ),
      attribute: Object.entries(attributes).map(([key, value]) => makeAttribute(key, value)),
    })
    this.graph.add(node)
    return node
  }

  /** A constant of `floatType`; shape [] is a scalar. */
  float(value: number | readonly number[], shape?: readonly number[]): Value {
    const values = typeof value === 'number' ? [value] : value
    const dims = shape ?? (typeof value === 'number' ? [] : [value.length])
    return this.#constant(`f${dims}:${values}`, {
      dataType: this.floatType,
      [this.floatType === DataType.FLOAT ? 'floatData' : 'doubleData']: [...values],
      dims: dims.map(BigInt),
    })
  }

  /** A constant of int64: a scalar or a vector. */
  int(value: number | readonly number[]): Value {
    const values = typeof value === 'number' ? [value] : value
    const dims = typeof value === 'number' ? [] : [value.length]
    return this.#constant(`i${dims}:${values}`, {
      dataType: DataType.INT64,
      int64Data: values.map(BigInt),
      dims: dims.map(BigInt),
    })
  }

  #constant(
    key: string,
    init: Pick<TensorProto, 'dataType' | 'dims'> & Partial<Pick<TensorProto, 'floatData' | 'doubleData' | 'int64Data'>>,
  ): Value {
    // Pruning may have removed a constant that nobody read.
    if (!this.graph.initializers.has(this.#constants.get(key) ?? '')) this.#constants.delete(key)
    return sharedValue(this.#constants, key, () => {
      const name = this.graph.freshName(`${this.scope}/constant`)
      return this.graph.addInitializer(create(TensorProtoSchema, { name, ...init }))
    })
  }

  add = (a: Value, b: Value): Value => this.op('Add', [a, b])
  sub = (a: Value, b: Value): Value => this.op('Sub', [a, b])
  mul = (a: Value, b: Value): Value => this.op('Mul', [a, b])
  div = (a: Value, b: Value): Value => this.op('Div', [a, b])
  neg = (a: Value): Value => this.op('Neg', [a])
  matmul = (a: Value, b: Value): Value => this.op('MatMul', [a, b])
  reshape = (a: Value, shape: Value): Value => this.op('Reshape', [a, shape])
  shape = (a: Value): Value => this.op('Shape', [a])
  cast = (a: Value, to: DataType): Value => this.op('Cast', [a], { to })
  transpose = (a: Value, perm: readonly number[]): Value => this.op('Transpose', [a], { perm })
  expand = (a: Value, shape: Value): Value => this.op('Expand', [a, shape])
  concat = (values: readonly Value[], axis: number): Value => this.op('Concat', values, { axis })
  where = (condition: Value, a: Value, b: Value): Value => this.op('Where', [condition, a, b])
  /** The length of an axis, (1). */
  length = (a: Value, axis: number): Value => this.op('Gather', [this.shape(a), this.int([axis])])
  /** Takes the part [from, to) along an axis. */
  slice = (a: Value, from: number, to: number, axis: number): Value =>
    this.op('Slice', [a, this.int([from]), this.int([to]), this.int([axis])])
  unsqueeze = (a: Value, axes: readonly number[]): Value => this.op('Unsqueeze', [a, this.int(axes)])
  reduceSum = (a: Value, axes: readonly number[], keepdims = 1): Value =>
    this.op('ReduceSum', [a, this.int(axes)], { keepdims })

  reduceMean = (a: Value, axes: readonly number[], keepdims = 1): Value => this.#reduce('ReduceMean', a, axes, keepdims)
  reduceMax = (a: Value, axes: readonly number[], keepdims = 1): Value => this.#reduce('ReduceMax', a, axes, keepdims)

  /** Before opset 18, reductions other than ReduceSum take their axes as an attribute. */
  #reduce(opType: string, a: Value, axes: readonly number[], keepdims: number): Value {
    return this.graph.opset() < 18
      ? this.op(opType, [a], { axes, keepdims })
      : this.op(opType, [a, this.int(axes)], { keepdims })
  }
}

export function sharedValue(values: Map<string, Value>, key: string, make: () => Value): Value {
  const value = values.get(key) ?? make()
  values.set(key, value)
  return value
}
