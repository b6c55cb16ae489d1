// One graph that gives the loss and the gradients of what is trained in a single run.

import { StateError, UnsupportedError } from '../../base/errors.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { DataType, type ModelProto } from '../../formats/onnx/tensors.js'
import type { Feeds, SessionModel, SessionOpener } from '../../runtime/runtime.js'
import { keepMapped, sessionModel } from '../session-model.js'
import type { ShapeMap } from '../shapes/shapes.js'
import type { Graph } from '../view/graph.js'
import { activeFeeds } from './activation.js'
import { type DropoutDraw, type DropoutMask, maskFeeds } from './dropout.js'
import { type Forward, LOSS, LOSS_SCALE, type TrainedLayer, type TrainingGraphOptions } from './forward.js'
import type { Length, Objective, TrainedTensor } from './objective-graph.js'
import { packTrained } from './packed.js'
import {
  ATTENTION_PASSES,
  FORWARD_PASSES,
  type Pass,
  runPasses,
  TRAINING_PASSES,
  type TrainedParameter,
  Work,
} from './passes.js'
import { lengthOf } from './probe.js'

export type { TrainedLayer, TrainedParameter, TrainedTensor, TrainingGraphOptions }

export interface RunnableGraph {
  /** Values that the objective gave out for metrics; none in a graph with gradients. */
  readonly predictions: readonly string[]
  readonly proto: ModelProto
  /** A (r, k) where it is trained and Bᵀ (r, d) of each layer, in the layers' order, then the objective's own. */
  readonly tensors: readonly TrainedTensor[]
  /**
   * The model for a session that takes inputs of any length. `packed`: what it takes as one vector. `copiedBytes`:
   * the most that copies of float weights take, which ONNX Runtime repacks; default: it repacks all.
   */
  sessionModel(packed?: readonly TrainedParameter[], copiedBytes?: number): Promise<SessionModel>
  /**
   * Feeds of one run, without what is trained. Inputs that the graph does not read are left out. `normalizer`: in
   * training that of all runs of a step. `dropout` is needed where the graph has dropout.
   */
  feeds(feeds: Feeds, options: { normalizer: number; dropout?: DropoutDraw | undefined }): Feeds
}

export interface LossGraph extends RunnableGraph {
  /** The objective's sum divided by the normalizer. */
  readonly loss: string
}

export interface TrainingGraph extends LossGraph {
  /** As `tensors`, with their gradients. */
  readonly parameters: readonly TrainedParameter[]
  /** With `twoPasses`: what is predicted, with the same dropout. */
  readonly firstPass: RunnableGraph | undefined
}

/**
 * The loss alone, or the predictions where it is computed from them: no dropout. Fused operators stay, but with
 * `attentionRows`, for which shapes are measured, attention is computed in blocks where it can be.
 */
export async function buildLossGraph(
  model: OnnxModel,
  runtime: SessionOpener,
  objective: Objective,
  options: Omit<TrainingGraphOptions, 'dropout'>,
): Promise<LossGraph> {
  const build = async (passes: readonly Pass[]) => {
    const work = new Work(model, objective, { ...options, dropout: 0 }, true, runtime, false)
    await runPasses([...FORWARD_PASSES, ...passes], work)
    return work
  }
  const { graph, forward } = await build(options.attentionRows === undefined ? [] : ATTENTION_PASSES).catch((error) => {
    if (error instanceof UnsupportedError) return build([])
    throw error
  })
  if (forward.objective.fedGradients.length > 0) {
    // The loss is computed from the predictions, and nothing is fed.
    graph.outputs = graph.outputs.slice(1)
    graph.prune({ inputs: true })
  }
  return finish(model, graph, forward, { dropout: 0, rows: new Map(), invocation: options.invocation })
}

/** Loss and gradients. Shapes of the forward part are measured on a few tokens. */
export async function buildTrainingGraph(
  model: OnnxModel,
  runtime: SessionOpener,
  objective: Objective,
  options: TrainingGraphOptions,
): Promise<TrainingGraph> {
  const { dropout = 0, twoPasses = false, invocation } = options
  const work = new Work(model, objective, options, twoPasses, runtime)
  await runPasses([...FORWARD_PASSES, ...TRAINING_PASSES], work)
  const { graph, forward, trained, predictionGraph } = work
  const rows = rowsOf(forward.masks, work.shapes, objective.probe.lengths)
  const fed = { dropout, rows, invocation }
  const firstPass = predictionGraph && finish(model, predictionGraph, forward, fed)
  const whole = finish(model, graph, { ...forward, predictions: [] }, fed)
  // Weights in half precision are cast once where optimizers run, and in each step where they do not.
  const isOptimized =
    options.isOptimized === true &&
    ![...graph.initializers.values()].some(({ dataType }) => dataType === DataType.FLOAT16)
  const open: TrainingGraph['sessionModel'] = async (...options) => ({
    ...(await whole.sessionModel(...options)),
    keepsRepeats: true,
    isOptimized,
  })
  return { ...whole, sessionModel: open, parameters: trained, firstPass }
}

/** The number of rows of each mask, or the length that tells it. */
type MaskRows = ReadonlyMap<DropoutMask, Length | number>

function rowsOf(masks: readonly DropoutMask[], shapes: ShapeMap, lengths: readonly Length[]): MaskRows {
  const entries = masks.map((mask) => {
    const { dims, other } = shapes.get(mask.of) ?? { dims: [], other: [] }
    const rows = lengthOf(lengths, dims[0], other[0]) ?? (dims[0] === other[0] ? dims[0] : undefined)
    if (rows === undefined) throw new StateError({ where: mask.input, what: 'the number of its rows has no name' })
    return [mask, rows] as const
  })
  return new Map(entries)
}

function finish(
  model: OnnxModel,
  graph: Graph,
  { parameters, predictions }: Forward,
  { dropout, rows, invocation }: { dropout: number; rows: MaskRows; invocation: readonly number[] | undefined },
): LossGraph {
  graph.prune()
  const proto = graph.toModel()
  const names = new Set(graph.inputs.map(({ name }) => name))
  return {
    loss: LOSS,
    predictions,
    proto,
    tensors: parameters,
    async sessionModel(packed, copiedBytes) {
      if (packed === undefined) return sessionModel(model, keepMapped(proto, copiedBytes))
      // ONNX Runtime would make one Split of all slices, which has more outputs than WebGPU has buffers for.
      return { ...(await sessionModel(model, packTrained(proto, packed))), keepsRepeats: true }
    },
    feeds(feeds, { normalizer, dropout: draw }) {
      if (rows.size > 0 && draw === undefined) throw new StateError({ where: 'dropout', what: 'no draw was given' })
      const lengthIn = (mask: DropoutMask) => {
        const length = rows.get(mask) ?? 0
        return typeof length === 'number' ? length : length.of(feeds)
      }
      const all: Feeds = {
        ...feeds,
        [LOSS_SCALE]: { type: 'float32', data: Float32Array.of(1 / normalizer), dims: [] },
        ...activeFeeds(feeds, invocation),
        ...(draw === undefined ? {} : maskFeeds([...rows.keys()], lengthIn, dropout, draw)),
      }
      // ONNX Runtime in browsers refuses others. A first pass has no loss.
      return Object.fromEntries(Object.entries(all).filter(([name]) => names.has(name)))
    },
  }
}
