// From a model and an objective to one graph that gives the loss and the gradients of what is trained in a single run.
// Base weights stay in their file; trained tensors, inputs and targets are fed.

import { StateError } from '../../base/errors.js'
import { elementCount } from '../../base/tensor.js'
import { TensorProto_DataType as DataType, type ModelProto, type NodeProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import type { Feeds, Runtime, SessionModel } from '../../runtime/runtime.js'
import { setAccuracyLevel } from '../accuracy-level.js'
import { fuseGelu } from '../fuse/gelu.js'
import { buildBackward, checkDifferentiable, gradientPath } from '../gradients/backward.js'
import { valueInfo } from '../inject/inject.js'
import type { BaseOpener } from '../inject/open-base.js'
import { takeBranchWithoutCache } from '../inputs/cache.js'
import { lowerForTraining } from '../lower/lower.js'
import type { ModuleMap } from '../match/linears.js'
import { recompute } from '../recompute/recompute.js'
import { sessionModel } from '../session-model.js'
import { declareShapes, mergeReshapes, plainShapes } from '../shapes/plain-shapes.js'
import type { ShapeMap } from '../shapes/shapes.js'
import { Builder, type Value } from '../view/builder.js'
import { Graph } from '../view/graph.js'
import { raiseOpset } from '../view/opset.js'
import { type DropoutDraw, type DropoutMask, maskFeeds } from './dropout.js'
import { computeInFloat32, keepOneCopy } from './float32.js'
import { buildForward, type Forward, LOSS, LOSS_SCALE, type TrainedLayer } from './forward.js'
import type { Length, Objective, TrainedTensor } from './objective-graph.js'
import { lengthOf, measureShapes, typicalElements } from './probe.js'
import { checkTrainableForm } from './trainable-form.js'

export type { TrainedLayer, TrainedTensor }

export interface TrainingGraphOptions {
  readonly layers: readonly TrainedLayer[]
  /** Lets weights of the base be trained. Default: none. */
  readonly base?: BaseOpener | undefined
  /** Probability in [0, 1) that an element of a LoRA branch's input is dropped. Default 0. */
  readonly dropout?: number | undefined
  /** Module name → node or initializer, where the graph's own names do not tell. */
  readonly modules?: ModuleMap | undefined
  /** Also gives the graph without gradients whose predictions the loss of a step is computed from. Default false. */
  readonly twoPasses?: boolean | undefined
}

/** A trained tensor, and the output that holds the loss's gradient by it. */
export interface TrainedParameter extends TrainedTensor {
  readonly gradient: string
}

export interface FeedOptions {
  /** Divisor of the objective's sum: in training that of all runs of a step. */
  readonly normalizer: number
  /** Needed where the graph has dropout. */
  readonly dropout?: DropoutDraw | undefined
}

/** A graph over a model's weights, and what it is fed. */
export interface RunnableGraph {
  /** Values that the objective gave out for metrics; none in a graph with gradients. */
  readonly predictions: readonly string[]
  readonly proto: ModelProto
  /** A (r, k) where it is trained and Bᵀ (r, d) of each layer, in the layers' order, then the objective's own. */
  readonly tensors: readonly TrainedTensor[]
  /** The model for a session that takes inputs of any length. */
  sessionModel(): Promise<SessionModel>
  /**
   * Feeds of one run, without what is trained.
   *
   * @param feeds the model's and the objective's inputs; those that the graph does not read are left out
   * @throws StateError when dropout has no draw
   */
  feeds(feeds: Feeds, options: FeedOptions): Feeds
}

/** A graph that gives the loss of a run. */
export interface LossGraph extends RunnableGraph {
  /** Output that holds the loss, a scalar: the objective's sum divided by the normalizer. */
  readonly loss: string
}

export interface TrainingGraph extends LossGraph {
  /** As `tensors`, with their gradients. */
  readonly parameters: readonly TrainedParameter[]
  /** With `twoPasses`: what is predicted, with the same dropout. */
  readonly firstPass: RunnableGraph | undefined
}

/** The loss alone, for evaluation, or the predictions where it is computed from them: no dropout, and the model's own fused operators stay. */
export async function buildLossGraph(
  model: OnnxModel,
  objective: Objective,
  options: Omit<TrainingGraphOptions, 'dropout'>,
): Promise<LossGraph> {
  const { graph, forward } = prepare(model, objective, { ...options, dropout: 0 }, true)
  if (forward.objective.fedGradients.length > 0) {
    // The loss is computed from the predictions, and nothing is fed.
    graph.outputs = graph.outputs.slice(1)
    graph.prune({ inputs: true })
  }
  return finish(model, graph, forward, 0, [])
}

/**
 * Loss and gradients. Shapes are measured by running the forward part twice on a few tokens.
 *
 * @param runtime where the measuring session runs
 * @throws UnsupportedError for what cannot be trained, by op and node, before anything is built
 * @throws MismatchError when a layer has no module in the model, or another shape there; what the objective throws
 */
export async function buildTrainingGraph(
  model: OnnxModel,
  runtime: Runtime,
  objective: Objective,
  options: TrainingGraphOptions,
): Promise<TrainingGraph> {
  const { dropout = 0, twoPasses = false } = options
  const { graph, forward } = prepare(model, objective, options, twoPasses)
  lowerForTraining(graph)
  fuseGelu(graph)
  const { sum, masks } = forward
  const isOptional = (name: string) => options.base?.optional.has(name) === true
  const inputs = new Set(graph.inputs.map(({ name }) => name))
  const parameters = forward.parameters.filter(({ name, input }) => inputs.has(input) || !isOptional(name))
  const { customGradients: custom, checks, fedGradients } = forward.objective
  const wrt = parameters.map(({ input }) => input)
  const path = gradientPath(graph, wrt, [sum], custom)
  checkDifferentiable(path, custom)
  const { probe } = objective
  const fixed = { [LOSS_SCALE]: { type: 'float32', data: Float32Array.of(1), dims: [] } as const, ...zeros(parameters) }
  const shapes = await measureShapes(graph, model, runtime, path, probe, { feeds: fixed, masks, fedGradients })
  for (const check of checks) check((value) => shapes.get(value))
  const rows = rowsOf(masks, shapes, probe.lengths)
  const [loss, ...predictions] = graph.outputs
  let firstPass: RunnableGraph | undefined
  if (twoPasses) {
    graph.outputs = [loss]
    const first = new Graph(graph.toModel())
    first.outputs = predictions
    first.prune({ inputs: true })
    firstPass = finish(model, first, forward, dropout, rows)
  }
  const g = new Builder(graph, 'backward')
  const gradients = buildBackward(g, shapes, new Map([[sum, g.float(1)]]), wrt, { custom, scale: LOSS_SCALE })
  const trained = parameters.flatMap((parameter): TrainedParameter[] => {
    const gradient = gradients.get(parameter.input)
    if (gradient === undefined) {
      if (isOptional(parameter.name)) return []
      throw new StateError({ where: parameter.name, what: 'the loss does not depend on it' })
    }
    graph.outputs.push(valueInfo(gradient, DataType.FLOAT, parameter.shape))
    return [{ ...parameter, gradient }]
  })
  keepOneCopy(graph, shapes, path.values)
  plainShapes(
    g,
    shapes,
    probe.lengths.flatMap(({ source }) => source ?? []),
  )
  mergeReshapes(graph, shapes)
  const again = recompute(graph, shapes, LOSS, (shape) => typicalElements(shape, probe.lengths))
  computeFirst(graph, LOSS)
  const reshaped = graph.nodes.filter(({ opType }) => opType === 'Reshape').map(({ output }) => output[0])
  const copies = [...again].flatMap(([copy, original]) => (path.values.has(original) ? [copy] : []))
  declareShapes(
    graph,
    shapes,
    [...path.values, ...copies, ...reshaped],
    (dim, other) => lengthOf(probe.lengths, dim, other)?.name,
  )
  const whole = finish(model, graph, { ...forward, predictions: [] }, dropout, rows)
  const open = async () => ({ ...(await whole.sessionModel()), keepsRepeats: true })
  return { ...whole, sessionModel: open, parameters: trained, firstPass }
}

/**
 * Lets ONNX Runtime compute an output before all others: it begins with the last node that nobody reads. Else logits and probabilities stay
 * until the end, and the gradient of the logits cannot take their place.
 */
function computeFirst(graph: Graph, output: Value): void {
  const node = graph.producer(output) as NodeProto
  graph.remove(node)
  graph.add(node)
}

function zeros(parameters: readonly TrainedTensor[]): Feeds {
  return Object.fromEntries(
    parameters.map(({ input, shape }) => [
      input,
      { type: 'float32', data: new Float32Array(elementCount(shape)), dims: shape },
    ]),
  )
}

function prepare(
  model: OnnxModel,
  objective: Objective,
  { layers, base, dropout = 0, modules }: TrainingGraphOptions,
  predicts = false,
) {
  const graph = new Graph(model.proto)
  computeInFloat32(graph)
  checkTrainableForm(graph)
  // Gradients do not know of rounded inputs.
  setAccuracyLevel(graph, 0)
  takeBranchWithoutCache(graph)
  raiseOpset(graph)
  const forward = buildForward(graph, objective, { layers, base, dropout, modules, predicts })
  graph.prune({ inputs: true })
  return { graph, forward }
}

/** A dropout mask, and the length that tells its rows. */
interface MaskRows {
  readonly mask: DropoutMask
  readonly rows: Length | number
}

function rowsOf(masks: readonly DropoutMask[], shapes: ShapeMap, lengths: readonly Length[]): MaskRows[] {
  return masks.map((mask) => {
    const { dims, other } = shapes.get(mask.of) ?? { dims: [], other: [] }
    const rows = lengthOf(lengths, dims[0], other[0]) ?? (dims[0] === other[0] ? dims[0] : undefined)
    if (rows === undefined) throw new StateError({ where: mask.input, what: 'the number of its rows has no name' })
    return { mask, rows }
  })
}

function finish(
  model: OnnxModel,
  graph: Graph,
  { parameters, predictions }: Forward,
  dropout: number,
  masks: readonly MaskRows[],
): LossGraph {
  graph.prune()
  const proto = graph.toModel()
  const names = new Set(graph.inputs.map(({ name }) => name))
  const rows = new Map(masks.map((entry) => [entry.mask, entry.rows]))
  return {
    loss: LOSS,
    predictions,
    proto,
    tensors: parameters,
    sessionModel: () => sessionModel(model, proto),
    feeds(feeds, { normalizer, dropout: draw }) {
      if (masks.length > 0 && draw === undefined) throw new StateError({ where: 'dropout', what: 'no draw was given' })
      const lengthIn = (mask: DropoutMask) => {
        const length = rows.get(mask) ?? 0
        return typeof length === 'number' ? length : length.of(feeds)
      }
      return {
        ...Object.fromEntries(Object.entries(feeds).filter(([name]) => names.has(name))),
        [LOSS_SCALE]: { type: 'float32', data: Float32Array.of(1 / normalizer), dims: [] },
        ...(draw === undefined ? {} : maskFeeds([...rows.keys()], lengthIn, dropout, draw)),
      }
    },
  }
}
