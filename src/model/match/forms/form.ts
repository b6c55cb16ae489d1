// A form of a linear layer: how to find it in a graph, and how to read its weight.

import type { OnnxModel } from '../../../onnx/format/model.js'
import type { DataType, NodeProto } from '../../../onnx/format/tensors.js'
import type { Value } from '../../../onnx/view/builder.js'
import type { Graph } from '../../../onnx/view/graph.js'

/** The operator that computes the product, or that makes its weight. */
export type FormName =
  | 'MatMul'
  | 'Gemm'
  | 'MatMulNBits'
  | 'MatMulBnb4'
  | 'MatMulInteger'
  | 'DynamicQuantizeMatMul'
  | 'DequantizeLinear'
  | 'Attention'
  | 'Conv'
  | 'Gather'
  | 'GatherBlockQuantized'

/** A product of an input and a constant weight, as one node or a few: output (…, d) = input (…, k) @ W. */
export interface Product {
  readonly form: Form
  /** The node that names the layer. */
  readonly node: NodeProto
  /** The node that makes the layer's output: not `node` if later nodes scale the output. */
  readonly last: NodeProto
  /** The initializer with the weight or its integers. */
  readonly weight: Value
  /** The float type of the input and the output. */
  readonly dataType: DataType
  /** True if the weight is stored as (d, k), not (k, d). */
  readonly transposed: boolean
  readonly k: number
  readonly d: number
  readonly input: Value
  readonly output: Value
  /** The bias that a node made by {@link Form.expose} adds. */
  readonly bias?: Value | undefined
  /** How the weight is stored, for people: '4 bits, blocks of 32'. */
  readonly layout: string
  /** Why lowrank cannot read the weight, though the layer runs: the part of its layout that is unknown. */
  readonly problem: string | undefined
}

/** Makes a product whose node reads the input first and makes the output, unless `members` say otherwise. */
export function productOf(
  form: Form,
  node: NodeProto,
  members: Omit<Product, 'form' | 'node' | 'last' | 'input' | 'output' | 'problem'> & Partial<Product>,
): Product {
  const { last = node } = members
  return { form, node, last, input: node.input[0], output: last.output[0], problem: undefined, ...members }
}

/** Reads rows [first, first + count) of the weight as stored, (d, k) or (k, d), in f32. */
export type ReadLines = (first: number, count: number) => Promise<Float32Array>

/** A form: a file of this folder, listed in forms.ts. */
export interface Form {
  readonly name: FormName
  readonly isQuantized: boolean
  /** True if the input selects rows of the weight, as in an embedding (V, D), with k = V and d = D. */
  readonly isLookup?: boolean
  find(graph: Graph, node: NodeProto): Product | undefined
  /** Opens the weight; integers are read as the floats that they stand for. Throws UnsupportedError if it cannot. */
  openLines(model: OnnxModel, graph: Graph, product: Product): Promise<ReadLines>
  /** Opens the distances between neighboring values that the integers can represent. Float forms have none. */
  openSteps?(model: OnnxModel, graph: Graph, product: Product): Promise<ReadLines>
  /** For nodes that compute more than the product: splits the node, and returns the separate product. */
  expose?(graph: Graph, product: Product): Product
}

export interface NamedLayer {
  /** As in PEFT's files, such as model.layers.0.self_attn.q_proj */
  readonly name: string
  readonly d: number
  readonly k: number
}

/** A linear layer: output (…, d) = input (…, k) @ weight, or some columns of a product that computes several layers. */
export interface Linear extends Product, NamedLayer {
  /** True if it makes the logits. */
  readonly isHead: boolean
  /** The layer's columns from `start` in a product of `width` columns that computes several layers. */
  readonly fused: { readonly module: string; readonly start: number; readonly width: number } | undefined
}
