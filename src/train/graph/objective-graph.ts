// The graph on which an objective builds its loss.

import { DataType } from '../../onnx/format/tensors.js'
import type { CustomGradient, CustomGradients } from '../../onnx/gradients/backward.js'
import { markDistinct } from '../../onnx/gradients/layout.js'
import { rowLosses } from '../../onnx/gradients/losses.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { RunLength } from '../../onnx/shapes/plain-shapes.js'
import type { ProbedShape } from '../../onnx/shapes/shapes.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { valueInfo } from '../../onnx/view/value-info.js'

export interface RowChoice {
  /** The rows before the choice, which may move to before the output layer. */
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
  /** The sum of the losses, a scalar, if the objective uses it. */
  readonly sum: Value | undefined
  /** Multiplies the losses' gradients (m, …) by the gradient of the sum or of each loss. */
  scaled(g: Builder, gradients: Value, dy: Value): Value
}

/** Throws if the measured shapes are wrong. */
export type ShapeCheck = (shapeOf: (value: Value) => ProbedShape | undefined) => void

export interface TrainedTensor {
  /** Unique in a graph, such as model.layers.0.mlp.up_proj.A or classifier.weight */
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

  /** Adds an input besides the model's. */
  input(name: string, type: DataType, dims: readonly (number | string)[]): Value {
    this.graph.inputs.push(valueInfo(name, type, dims))
    return name
  }

  parameter(name: string, shape: readonly number[]): Value {
    const input = `trained/${name}`
    this.parameters.push({ name, input, shape })
    return this.input(input, DataType.FLOAT, shape)
  }

  /**
   * Chooses rows of a value (…, k), counted over all leading axes. `rows` are int64 (m), each once. A layer before that
   * computes row by row, such as the output embedding, then only computes these rows.
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

  /** −ln softmax(logits)[target] of each row, (m). Parameters as in {@link crossEntropy}. */
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

  /** Σ value · gradient, where each run is fed the gradient as `input`, for a loss over several runs. */
  fedGradient(value: Value, input: string): Value {
    this.fedGradients.push({ value, input })
    this.graph.inputs.push(valueInfo(input, DataType.FLOAT))
    return this.g.op('ReduceSum', [this.g.mul(value, input)], { keepdims: 0 })
  }

  /** Outputs a value in graphs without gradients, for metrics. */
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
  /** No other length and no constant may have the same values at both probe points. */
  readonly probed: readonly [number, number]
  of(feeds: Feeds): number
  /** The axis of a graph input with this length; undefined for products of lengths. */
  readonly source?: RunLength | undefined
  /** How many tokens a unit of the length stands for, if the length is not an axis of an input. */
  readonly tokens?: number | undefined
}

export interface Probe {
  readonly feeds: readonly [Feeds, Feeds]
  readonly lengths: readonly Length[]
}

export interface Objective {
  readonly probe: Probe
  /** In two passes: the second gives the predictions, too. Default false. */
  readonly keepsPredictions?: boolean
  /** Returns a scalar, which divided by the normalizer is the loss. */
  forward(graph: ObjectiveGraph): Value | Promise<Value>
}
