// The graph that an objective builds on.

import { DataType } from '../../formats/onnx/tensors.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { CustomGradient, CustomGradients } from '../gradients/backward.js'
import { markDistinct } from '../gradients/layout.js'
import { rowLosses } from '../gradients/losses.js'
import { valueInfo } from '../inject/inject.js'
import type { RunLength } from '../shapes/plain-shapes.js'
import type { ProbedShape } from '../shapes/shapes.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

export interface RowChoice {
  /** The rows of all positions; where the choice moves, those in front of its new place. */
  all: Value
  readonly chosen: Value
}

export interface LossOfRows {
  /** (m, V) */
  readonly logits: Value
  /** int64 (m, 2): row number and target of each row */
  readonly targets: Value
  /** (m) */
  readonly losses: Value
  /** A scalar, where the sum of the losses is wanted. */
  readonly sum: Value | undefined
  /** Gradients (m, …) of the losses, times the gradient by the sum or by each loss. */
  scaled(g: Builder, gradients: Value, dy: Value): Value
}

/** Sees the measured shapes, and throws what is wrong with them. */
export type ShapeCheck = (shapeOf: (value: Value) => ProbedShape | undefined) => void

export interface TrainedTensor {
  /** Unique among those of a graph, as in model.layers.0.mlp.up_proj.A or classifier.weight */
  readonly name: string
  readonly input: string
  readonly shape: readonly number[]
}

export class ObjectiveGraph {
  readonly g: Builder
  readonly customGradients: CustomGradients = new Map()
  readonly choices: RowChoice[] = []
  readonly losses: LossOfRows[] = []
  readonly parameters: TrainedTensor[] = []
  readonly checks: ShapeCheck[] = []
  readonly predictions: Value[] = []
  readonly fedGradients: { readonly value: Value; readonly input: string }[] = []

  constructor(readonly graph: Graph) {
    this.g = new Builder(graph, 'objective')
  }

  get outputs(): readonly { readonly name: Value }[] {
    return this.graph.outputs
  }

  /** An input that runs are fed besides the model's own. */
  input(name: string, type: DataType, dims: readonly (number | string)[]): Value {
    this.graph.inputs.push(valueInfo(name, type, dims))
    return name
  }

  /** Float32. */
  parameter(name: string, shape: readonly number[]): Value {
    const input = `trained/${name}`
    this.parameters.push({ name, input, shape })
    return this.input(input, DataType.FLOAT, shape)
  }

  /**
   * Rows of a value (…, k), counted over all leading axes; `rows` are int64 (m), each once. Layers in front that
   * compute row by row, such as the output embedding, compute these rows alone.
   */
  chooseRows(value: Value, rows: Value): RowChoice {
    const all = this.g.op('Flatten', [value], { axis: -1 })
    const node = this.g.node('Gather', [all, rows], { axis: 0 })
    markDistinct(node)
    const choice = { all, chosen: node.output[0] }
    this.choices.push(choice)
    return choice
  }

  /** Σ −ln softmax(logits)[target], a scalar. `logits` are (m, V); `targets` int64 (m, 2): row number and target. */
  crossEntropy(logits: Value, targets: Value): Value {
    const { losses, slopes } = rowLosses(this.g, logits, targets)
    const sum = this.g.reduceSum(losses, [0], 0)
    const scaled: LossOfRows['scaled'] = (g, gradients, dy) => (dy === g.float(1) ? gradients : g.mul(gradients, dy))
    this.#addLoss({ logits, targets, losses, sum, scaled }, slopes)
    return sum
  }

  /** −ln softmax(logits)[target] of each row, (m): parameters as in {@link crossEntropy}. */
  rowLosses(logits: Value, targets: Value): Value {
    const { losses, slopes } = rowLosses(this.g, logits, targets)
    const scaled: LossOfRows['scaled'] = (g, gradients, dy) => g.mul(gradients, g.unsqueeze(dy, [1]))
    this.#addLoss({ logits, targets, losses, sum: undefined, scaled }, slopes)
    return losses
  }

  #addLoss(loss: LossOfRows, slopes: (g: Builder) => Value): void {
    this.losses.push(loss)
    const rule: CustomGradient['rule'] = ({ g, dy }) => [() => loss.scaled(g, slopes(g), dy)]
    this.customGradients.set(loss.sum ?? loss.losses, { inputs: [loss.logits], rule })
  }

  /**
   * Σ (value · gradient): a scalar whose gradient by the value is fed as `input`, for a loss over the values of many
   * runs.
   */
  fedGradient(value: Value, input: string): Value {
    this.fedGradients.push({ value, input })
    this.graph.inputs.push(valueInfo(input, DataType.FLOAT))
    return this.g.op('ReduceSum', [this.g.mul(value, input)], { keepdims: 0 })
  }

  /** Gives a value out where the loss alone is computed, for metrics. */
  predict(value: Value): Value {
    this.predictions.push(value)
    return value
  }

  check(check: ShapeCheck): void {
    this.checks.push(check)
  }
}

/** A length that differs between runs, such as the number of sequences. */
export interface Length {
  readonly name: string
  /** No other length, and no constant, may be the same at both probe points. */
  readonly probed: readonly [number, number]
  of(feeds: Feeds): number
  /** The axis of a graph input where the graph itself can read it; undefined for products of others. */
  readonly source?: RunLength | undefined
  /** Tokens that one of it stands for, if it is no axis of an input. */
  readonly tokens?: number | undefined
}

export interface Probe {
  readonly feeds: readonly [Feeds, Feeds]
  readonly lengths: readonly Length[]
}

export interface Objective {
  readonly probe: Probe
  /** Returns a scalar; the loss is that over the normalizer of a run. */
  forward(graph: ObjectiveGraph): Value
}
