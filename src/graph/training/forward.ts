// The forward part of a training graph: the model with LoRA branches, and what the objective builds on its outputs.

import { create } from '../../formats/onnx/protobuf.js'
import { bytesOf, DataType, type NodeProto, TensorProtoSchema } from '../../formats/onnx/tensors.js'
import { gradientPath } from '../gradients/backward.js'
import { quantizedGradient } from '../gradients/quantized.js'
import { valueInfo } from '../inject/inject.js'
import type { BaseOpener } from '../inject/open-base.js'
import { siteInput } from '../inject/sites.js'
import { type Branch, magnitudeInput, TrainableLinears } from '../inject/trainable.js'
import { dropEmptyCache } from '../inputs/cache.js'
import type { NamedLayer } from '../match/forms/form.js'
import { findProduct } from '../match/forms/forms.js'
import { withPointwise } from '../match/forms/pointwise.js'
import { exposeProducts, findLinears, type Linear, type ModuleMap, reachesRowWise } from '../match/linears.js'
import { matchLayers } from '../match/match.js'
import { partsForGraph } from '../match/packed.js'
import { LOGIT_BYTES } from '../memory.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import type { DropoutMask } from './dropout.js'
import { lossInBlocks } from './loss-blocks.js'
import { type Objective, ObjectiveGraph, type RowChoice, type TrainedTensor } from './objective-graph.js'

export interface TrainedLayer extends NamedLayer, Pick<Branch, 'rank' | 'scaling' | 'baseSquares'> {
  /** A (r, k) where it is not trained: a constant of the graph. */
  readonly fixedA?: Float32Array | undefined
}

export interface TrainingGraphOptions {
  readonly layers: readonly TrainedLayer[]
  /** Lets weights of the base be trained. */
  readonly base?: BaseOpener | undefined
  /** Probability in [0, 1) that an element of a LoRA branch's input is dropped. Default 0. */
  readonly dropout?: number | undefined
  /** The tokens from which on an activated LoRA counts: those that {@link ACTIVE} says. */
  readonly invocation?: readonly number[] | undefined
  /** Module name → node or initializer, where the graph's own names do not tell. */
  readonly modules?: ModuleMap | undefined
  /** Also gives the graph without gradients whose predictions the loss of a step is computed from. Default false. */
  readonly twoPasses?: boolean | undefined
  /** Size of the largest batch. Small ones keep more for the backward pass. */
  readonly tokens?: number | undefined
  /** Opened without the optimizers of the runtime: of what they find, only transposes in products save time. */
  readonly isOptimized?: boolean | undefined
  /** Sizes from which the loss is computed in blocks. Default: {@link LOGIT_BYTES}. */
  readonly logitBytes?: typeof LOGIT_BYTES | undefined
  /** Most queries in a block of attention. Default: one block has all. */
  readonly attentionRows?: number | undefined
}

export interface Forward {
  /** The loss without its normalizer. */
  readonly sum: Value
  readonly objective: ObjectiveGraph
  /**
   * A (r, k) where it is trained, Bᵀ (r, d) and for DoRA m (d) of each layer, then weights of the base, then the
   * objective's.
   */
  readonly parameters: readonly TrainedTensor[]
  readonly masks: readonly DropoutMask[]
  readonly predictions: readonly Value[]
}

export const LOSS = 'loss'
/** The graph input that the sum is multiplied by, 1/normalizer. */
export const LOSS_SCALE = 'loss/scale'
/** One vector in the place of all trained tensors, and the output of its gradient. */
export const PACKED = 'trained'
export const PACKED_GRADIENT = 'trained/gradient'

/**
 * Rewrites the graph; its outputs are the loss and, with `predicts`, what is predicted. `hasGradients` is false where
 * the loss alone is wanted.
 */
export function buildForward(
  graph: Graph,
  objective: Objective,
  options: TrainingGraphOptions,
  { predicts, hasGradients }: { predicts: boolean; hasGradients: boolean },
): Forward {
  const own = new ObjectiveGraph(graph)
  const sum = objective.forward(own)
  const predictions = predicts ? own.predictions : []
  const predicted = predictions.map((name) => valueInfo(name, DataType.FLOAT))
  graph.outputs = [valueInfo(sum, DataType.FLOAT, []), ...predicted]
  dropEmptyCache(graph)
  graph.prune()

  const names = options.layers.map(({ name }) => name)
  const found = withPointwise(graph, findLinears(graph, options.modules), names)
  const base = options.base?.open(graph, found)
  for (const { input, shape } of base?.trained ?? []) graph.inputs.push(valueInfo(input, DataType.FLOAT, shape))
  const linears = exposeProducts(graph, found)
  const placed = matchLayers(linears, partsForGraph(linears, options.layers, false))
  const ofBase = base?.layersOf(linears) ?? []
  const adapted = new Set([...placed.map(({ linear }) => linear), ...ofBase].map(({ node }) => node))
  const others = [...(base?.trained ?? []), ...own.parameters]
  // A path ends at what it is looked for, and layers lie between two that are adapted: so weights, not outputs.
  const weights = linears.filter(({ node }) => adapted.has(node)).map(({ weight }) => weight)
  const wrt = [...weights, ...others.map(({ input }) => input)]
  const between = new Set(gradientPath(graph, wrt, [sum], own.customGradients).nodes)
  const trained = linears.filter(({ node }) => adapted.has(node) || between.has(node))

  const factors = declareFactors(graph, options.layers)
  const trainable = new TrainableLinears(graph, new Builder(graph, 'lora'))
  const moves = own.choices.flatMap((choice) => choiceBehind(graph, hasGradients ? trained : linears, choice) ?? [])
  const chosen = new Set(moves.map(({ linear }) => linear.node))
  const inRows = new Map<NodeProto, Linear>()
  for (const linear of trained) {
    if (!chosen.has(linear.node) && !inRows.has(linear.node)) inRows.set(linear.node, trainable.toRows(linear))
  }
  for (const { linear, choice, value } of moves) {
    const gather = graph.producer(choice.chosen) as NodeProto
    const moved = trainable.chooseRows(linear, gather)
    graph.remove(gather)
    graph.rename(value, choice.chosen)
    choice.all = moved.all
    inRows.set(linear.node, moved.linear)
  }
  base?.openLayers(inRows, own.customGradients)
  const branches = placed.map(({ linear, layer: { layer, start, d } }) => {
    const { form, last, input, output } = inRows.get(linear.node) as Linear
    const { name, rank, scaling, baseSquares } = layer
    const part = d === layer.d ? undefined : { start, end: start + d }
    return { linear: { ...linear, form, last, input, output, name }, rank, scaling, baseSquares, part }
  })
  trainable.adapt(branches, options.dropout ?? 0, options.invocation !== undefined)
  for (const value of trainable.constants) own.customGradients.set(value, { inputs: [], rule: () => [] })
  for (const { node, form } of trained) {
    const product = form.isQuantized ? findProduct(graph, node) : undefined
    const gradient = product && quantizedGradient(product)
    if (product !== undefined && gradient !== undefined) own.customGradients.set(product.output, gradient)
  }
  lossInBlocks(own, options.logitBytes ?? LOGIT_BYTES, hasGradients)
  graph.inputs.push(valueInfo(LOSS_SCALE, DataType.FLOAT, []))
  graph.rename(own.g.mul(sum, LOSS_SCALE), LOSS)
  graph.outputs = [valueInfo(LOSS, DataType.FLOAT, []), ...predicted]
  const parameters = [...factors, ...others]
  return { sum, objective: own, parameters, masks: trainable.masks, predictions }
}

/** All behind the layer treats each row for itself, so that the rows can be chosen in front of it. */
function choiceBehind(
  graph: Graph,
  linears: readonly Linear[],
  choice: RowChoice,
): { linear: Linear; choice: RowChoice; value: Value } | undefined {
  const value = (graph.producer(choice.all) as NodeProto).input[0]
  const linear = linears.find(
    (candidate) => candidate.node === candidate.last && reachesRowWise(graph, candidate, value),
  )
  return linear && { linear, choice, value }
}

/** A is (r, k) and B is Bᵀ (r, d): products that give the gradient of a matrix with few columns are slow. */
function declareFactors(graph: Graph, layers: readonly TrainedLayer[]): TrainedTensor[] {
  return layers.flatMap(({ name, d, k, rank, baseSquares, fixedA }) => {
    const [weightA, weightB] = [siteInput(name, 'A'), siteInput(name, 'B')]
    if (fixedA !== undefined) {
      const fixed = { dataType: DataType.FLOAT, dims: [rank, k].map(BigInt), rawData: bytesOf(fixedA) }
      graph.addInitializer(create(TensorProtoSchema, { name: weightA, ...fixed }))
    }
    const tensors = [
      ...(fixedA === undefined ? [{ name: `${name}.A`, input: weightA, shape: [rank, k] }] : []),
      { name: `${name}.B`, input: weightB, shape: [rank, d] },
      ...(baseSquares === undefined ? [] : [{ name: `${name}.magnitude`, input: magnitudeInput(name), shape: [d] }]),
    ]
    for (const { input, shape } of tensors) graph.inputs.push(valueInfo(input, DataType.FLOAT, shape))
    return tensors
  })
}
