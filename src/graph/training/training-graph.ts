// From a causal language model to one graph that gives the loss and the gradients of its LoRA factors in a single run.
// Base weights stay in their file; factors, tokens and targets are fed.

import { StateError, UnsupportedError } from '../../base/errors.js'
import { TensorProto_DataType as DataType, type ModelProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import type { Feeds, Runtime, SessionModel } from '../../runtime/runtime.js'
import { buildBackward, checkDifferentiable, gradientPath } from '../gradients/backward.js'
import { crossEntropyGradient } from '../gradients/losses.js'
import { loraInputs, valueInfo } from '../inject/inject.js'
import { causalInputs } from '../inputs/causal-inputs.js'
import { lowerForTraining } from '../lower/lower.js'
import type { ModuleMap } from '../match/linears.js'
import { sessionModel } from '../session-model.js'
import { mergeReshapes } from '../shapes/merge-reshapes.js'
import { declareShapes, plainShapes } from '../shapes/plain-shapes.js'
import type { ShapeMap } from '../shapes/shapes.js'
import { Builder, type Value } from '../view/builder.js'
import { Graph } from '../view/graph.js'
import { raiseOpset } from '../view/opset.js'
import { checkTrainableForm } from './trainable-form.js'
import {
  type DropoutDraw,
  firstRowFeeds,
  LOSS_INPUTS,
  maskFeeds,
  type TokenBatch,
  targetFeeds,
} from './training-feeds.js'
import { buildForward, LOSS, type TrainedLayer, type TrainingForward } from './training-forward.js'
import { isOfAllTokens, lengthName, measureShapes, RUN_LENGTHS } from './training-probe.js'

export type { TokenBatch, TrainedLayer }

export interface TrainingGraphOptions {
  readonly layers: readonly TrainedLayer[]
  /** Probability in [0, 1) that an element of a LoRA branch's input is dropped. Default 0. */
  readonly dropout?: number | undefined
  /** Module name → node or initializer, where the graph's own names do not tell. */
  readonly modules?: ModuleMap | undefined
}

/**
 * One LoRA factor: a graph input, A (r, k) or Bᵀ (r, d), and the output that holds the loss's gradient by it. Both have
 * few rows: products that give the gradient of a matrix with few columns are several times slower.
 */
export interface TrainedParameter {
  readonly layer: string
  readonly factor: 'A' | 'B'
  readonly input: string
  readonly gradient: string
  readonly shape: readonly [number, number]
}

export interface FeedOptions {
  /** The loss is the sum over targets divided by this: the number of targets of all runs of a step. */
  readonly normalizer: number
  /** Needed where the graph has dropout. */
  readonly dropout?: DropoutDraw | undefined
}

/** A graph that gives the loss of a batch of tokens. Inputs of the factors are those of `loraInputs`. */
export interface LossGraph {
  /** Output that holds the loss, a scalar: the sum over targets of −ln p(target), divided by the normalizer. */
  readonly loss: string
  readonly proto: ModelProto
  /** What a session needs that takes any batch and sequence. */
  sessionModel(): Promise<SessionModel>
  /**
   * Feeds of one run, without the factors.
   *
   * @throws DataError when no position has a target, StateError when dropout has no draw
   */
  feeds(batch: TokenBatch, options: FeedOptions): Feeds
}

export interface TrainingGraph extends LossGraph {
  /** Both factors of each layer, in the layers' order. */
  readonly parameters: readonly TrainedParameter[]
}

/** The loss alone, for evaluation: no dropout, and the model's own fused operators stay. */
export function buildLossGraph(model: OnnxModel, options: Omit<TrainingGraphOptions, 'dropout'>): LossGraph {
  const { graph, forward, tokens } = prepare(model, { ...options, dropout: 0 })
  return finish(model, graph, forward, tokens, 0)
}

/**
 * Loss and gradients. Shapes are measured by running the forward part twice on a few tokens.
 *
 * @param runtime where the measuring session runs
 * @throws UnsupportedError for what cannot be trained, by op and node, and for a model whose head sees the last token alone,
 *   before anything is built
 * @throws MismatchError when a layer has no module in the model, or another shape there
 */
export async function buildTrainingGraph(
  model: OnnxModel,
  runtime: Runtime,
  options: TrainingGraphOptions,
): Promise<TrainingGraph> {
  const { dropout = 0, layers } = options
  const { graph, forward, tokens } = prepare(model, options)
  lowerForTraining(graph)
  const { logits, all, chosen, masks } = forward
  const factors = factorsOf(layers)
  const wrt = factors.map(({ input }) => input)
  const paths = [gradientPath(graph, [chosen, ...wrt], [logits]), gradientPath(graph, wrt, [all])]
  checkDifferentiable(...paths)
  const shapes = await measureShapes(graph, model, runtime, paths, (batch) => ({
    ...tokens(batch),
    ...firstRowFeeds(batch),
    ...maskFeeds(masks, batch.batch * batch.sequence, dropout, { seed: 0, step: 0, run: 0 }),
    ...zeroFactors(factors),
  }))
  checkAllTokens(shapes, all)
  const g = new Builder(graph, 'backward')
  const gradients = appendGradients(g, shapes, forward, wrt)
  const parameters = factors.map((factor) => {
    const gradient = gradients.get(factor.input)
    if (gradient === undefined) {
      throw new StateError({ where: factor.layer, what: 'the loss does not depend on this module' })
    }
    graph.outputs.push(valueInfo(gradient, DataType.FLOAT, factor.shape))
    return { ...factor, gradient }
  })
  plainShapes(g, shapes, RUN_LENGTHS)
  mergeReshapes(graph, shapes)
  const reshaped = graph.nodes.filter(({ opType }) => opType === 'Reshape').map(({ output }) => output[0])
  declareShapes(graph, shapes, [...paths.flatMap(({ values }) => [...values]), ...reshaped], lengthName)
  return { ...finish(model, graph, forward, tokens, dropout), parameters }
}

/** Throws UnsupportedError unless the head's rows are those of all tokens. */
function checkAllTokens(shapes: ShapeMap, rows: Value): void {
  const shape = shapes.get(rows)
  if (shape !== undefined && isOfAllTokens(shape)) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'it gives logits of some tokens only, such as the last one, where training needs those of all',
    expected: 'logits (batch, sequence, vocabulary)',
    got: `${shape?.dims[0]} rows of logits for 2 sequences of 3 tokens`,
    hint: 'Export the model anew without the option that cuts the logits (prune_lm_head, num_logits_to_keep)',
  })
}

type Factor = Omit<TrainedParameter, 'gradient'>

function factorsOf(layers: readonly TrainedLayer[]): Factor[] {
  return layers.flatMap(({ name: layer, k, d, rank }): Factor[] => {
    const { weightA, weightB } = loraInputs(layer)
    return [
      { layer, factor: 'A', input: weightA, shape: [rank, k] },
      { layer, factor: 'B', input: weightB, shape: [rank, d] },
    ]
  })
}

function zeroFactors(factors: readonly Factor[]): Feeds {
  return Object.fromEntries(
    factors.map(({ input, shape }) => [
      input,
      { type: 'float32', data: new Float32Array(shape[0] * shape[1]), dims: shape },
    ]),
  )
}

function prepare(model: OnnxModel, { layers, dropout = 0, modules }: TrainingGraphOptions) {
  const graph = new Graph(model.proto)
  checkTrainableForm(graph)
  raiseOpset(graph)
  const inputs = causalInputs(graph)
  const forward = buildForward(graph, inputs, { layers, dropout, modules })
  graph.prune({ inputs: true })
  const names = new Set(graph.inputs.map(({ name }) => name))
  const tokens = (batch: TokenBatch): Feeds => {
    const feeds = { ...inputs.feeds(batch), ...inputs.emptyCache(batch.batch) }
    return Object.fromEntries(Object.entries(feeds).filter(([name]) => names.has(name)))
  }
  return { graph, forward, tokens }
}

/**
 * Gradients by each of `wrt`: from the loss to the rows with a target, and from all rows on. (m, k) has fewer elements to
 * scale than the logits' (m, V), unless factors of the head need the scale as well.
 */
function appendGradients(
  g: Builder,
  shapes: ShapeMap,
  { rowLoss, logits, all, chosen, trainsHead }: TrainingForward,
  wrt: readonly Value[],
): Map<Value, Value> {
  const scaled = (value: Value) => g.mul(value, LOSS_INPUTS.scale)
  const ofLogits = crossEntropyGradient(g, rowLoss, LOSS_INPUTS.targets)
  const seeds = new Map([[logits, trainsHead ? scaled(ofLogits) : ofLogits]])
  const ofHead = buildBackward(g, shapes, seeds, [chosen, ...wrt])
  const ofChosen = ofHead.get(chosen) as Value
  ofHead.delete(chosen)
  // Each row was chosen once at most: its gradient goes back to its place among zeros.
  const zeros = g.expand(g.float(0), g.shape(all))
  const places = g.unsqueeze(LOSS_INPUTS.rows, [1])
  const ofAll = g.op('ScatterND', [zeros, places, trainsHead ? ofChosen : scaled(ofChosen)])
  return new Map([...buildBackward(g, shapes, new Map([[all, ofAll]]), wrt), ...ofHead])
}

function finish(
  model: OnnxModel,
  graph: Graph,
  { masks }: TrainingForward,
  tokens: (batch: TokenBatch) => Feeds,
  dropout: number,
): LossGraph {
  graph.prune()
  const proto = graph.toModel()
  return {
    loss: LOSS,
    proto,
    sessionModel: () => sessionModel(model, proto),
    feeds(batch, { normalizer, dropout: draw }) {
      if (masks.length > 0 && draw === undefined) throw new StateError({ where: 'dropout', what: 'no draw was given' })
      const rows = batch.batch * batch.sequence
      return {
        ...tokens(batch),
        ...targetFeeds(batch, normalizer),
        ...(draw === undefined ? {} : maskFeeds(masks, rows, dropout, draw)),
      }
    },
  }
}
