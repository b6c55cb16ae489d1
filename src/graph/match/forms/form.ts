// A form of a linear layer tells how the layer looks in a graph, and how its weight is read.

import type { OnnxModel } from '../../../formats/onnx/model.js'
import type { DataType, NodeProto } from '../../../formats/onnx/tensors.js'
import type { Value } from '../../view/builder.js'
import type { Graph } from '../../view/graph.js'

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
  /** It gives the layer its name. */
  readonly node: NodeProto
  /** The node whose first output is the layer's: another than `node` where the output is scaled by others. */
  readonly last: NodeProto
  /** Name of the initializer that holds the weight, or its integers. */
  readonly weight: Value
  /** Float type of the input and the output. */
  readonly dataType: DataType
  /** The weight is stored (d, k), not (k, d). */
  readonly transposed: boolean
  readonly k: number
  readonly d: number
  readonly input: Value
  readonly output: Value
  /** A bias that another node adds: only where {@link Form.expose} has made that node. */
  readonly bias?: Value | undefined
  /** How the weight is stored, for people: '4 bits, blocks of 32'. */
  readonly layout: string
  /** The part of the layout that lowrank does not understand. Such a layer runs, but its weight is not read. */
  readonly problem: string | undefined
}

/** The product of a node that takes its float input first and gives the output itself, but for what `own` says. */
export function productOf(
  form: Form,
  node: NodeProto,
  own: Omit<Product, 'form' | 'node' | 'last' | 'input' | 'output' | 'problem'> & Partial<Product>,
): Product {
  const { last = node } = own
  return { form, node, last, input: node.input[0], output: last.output[0], problem: undefined, ...own }
}

/** Reads stored lines [first, first + count) of a weight as f32: rows of the stored (d, k) or (k, d). */
export type ReadLines = (first: number, count: number) => Promise<Float32Array>

/** Each form is a file of this folder, listed in forms.ts. */
export interface Form {
  readonly name: FormName
  readonly isQuantized: boolean
  /** The input is the number of a row of the weight, as in an embedding E (V, D): V in and D out. */
  readonly isLookup?: boolean
  find(graph: Graph, node: NodeProto): Product | undefined
  /** Integers become the floats that they stand for. Throws UnsupportedError when the weight cannot be read. */
  openLines(model: OnnxModel, graph: Graph, product: Product): Promise<ReadLines>
  /** Reads the distance from each value to the next one that its integers can say. Floats have none. */
  openSteps?(model: OnnxModel, graph: Graph, product: Product): Promise<ReadLines>
  /**
   * For products that are a part of what their node computes: replaces the node, and returns the product as it is then.
   */
  expose?(graph: Graph, product: Product): Product
}

/** A layer of an adapter, or of a graph. */
export interface NamedLayer {
  /** As in PEFT's files: model.layers.0.self_attn.q_proj */
  readonly name: string
  readonly d: number
  readonly k: number
}

/**
 * One linear layer: output (…, d) = input (…, k) @ weight, or some columns of a product that computes several layers.
 */
export interface Linear extends Product, NamedLayer {
  /** True for the output embedding. */
  readonly isHead: boolean
  /** Start of this layer's d columns in the product's output, when the product computes several layers at once. */
  readonly fused: { readonly module: string; readonly start: number; readonly width: number } | undefined
}
