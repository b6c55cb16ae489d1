// Builds a graph that computes loss and gradients in a single run.

import { StateError, UnsupportedError } from '../../core/base/errors.js'
import { keepMapped, sessionModel } from '../../model/session-model.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import { DataType, type ModelProto } from '../../onnx/format/tensors.js'
import type { Feeds, SessionModel, SessionOpener } from '../../onnx/runtime/runtime.js'
import type { ShapeMap } from '../../onnx/shapes/shapes.js'
import type { Graph } from '../../onnx/view/graph.js'
import { type DropoutDraw, type DropoutMask, maskFeeds } from './dropout.js'
import { feedsFor } from './float32.js'
import { type Forward, LOSS, LOSS_SCALE, type TrainedLayer, type TrainingGraphOptions } from './forward.js'
import type { Length, Objective, TrainedTensor } from './objective-graph.js'
import { packTrained } from './packed.js'
import { addGradients, addLoss, lowerAttention, type TrainedParameter, Work } from './passes.js'
import { lengthOf } from './probe.js'

export type { TrainedLayer, TrainedParameter, TrainedTensor, TrainingGraphOptions }

export interface RunnableGraph {
  /** Outputs for metrics; empty in a graph with gradients. */
  readonly predictions: readonly string[]
  readonly proto: ModelProto
  /** The trained tensors, in the order of {@link Forward.parameters}. */
  readonly tensors: readonly TrainedTensor[]
  /**
   * Makes the model for a session. `packed`: tensors to take as one vector. `copiedBytes`: limit for the copies of
   * float weights that ONNX Runtime makes to repack them; default: it repacks all.
   */
  sessionModel(packed?: readonly TrainedParameter[], copiedBytes?: number): Promise<SessionModel>
  /**
   * Makes the feeds of a run, except trained tensors and inputs that the graph does not read. `normalizer`: in
   * training, of all runs of the step. `dropout` is required if the graph has dropout.
   */
  feeds(feeds: Feeds, options: { normalizer: number; dropout?: DropoutDraw | undefined }): Feeds
}

export interface LossGraph extends RunnableGraph {
  /** The output with the loss: the objective's sum divided by the `normalizer` of {@link feeds}. */
  readonly loss: string
}

export interface TrainingGraph extends LossGraph {
  /** The trained tensors with their gradients. */
  readonly parameters: readonly TrainedParameter[]
  /** With `twoPasses`: the graph that predicts, with the same dropout. */
  readonly firstPass: RunnableGraph | undefined
}

/**
 * Builds a graph of the loss without dropout, or of the predictions if the loss is computed from them outside the
 * graph. Fused operators stay, unless `attentionRows` asks for attention in blocks, for which shapes are measured.
 */
export async function buildLossGraph(
  model: OnnxModel,
  runtime: SessionOpener,
  objective: Objective,
  options: Omit<TrainingGraphOptions, 'dropout'>,
): Promise<LossGraph> {
  const build = async (inBlocks: boolean) => {
    const work = new Work(model, objective, { ...options, dropout: 0 }, true, runtime, false)
    await addLoss(work)
    if (inBlocks) await lowerAttention(work)
    return work
  }
  const { graph, forward } = await build(options.attentionRows !== undefined).catch((error) => {
    if (error instanceof UnsupportedError) return build(false)
    throw error
  })
  if (forward.objective.fedGradients.length > 0) {
    // The loss is computed outside, from the predictions.
    graph.outputs = graph.outputs.slice(1)
    graph.prune({ inputs: true })
  }
  return finish(model, graph, forward, { dropout: 0, rows: new Map() })
}

/** Builds a graph of loss and gradients. Measures shapes of the forward part on a few tokens. */
export async function buildTrainingGraph(
  model: OnnxModel,
  runtime: SessionOpener,
  objective: Objective,
  options: TrainingGraphOptions,
): Promise<TrainingGraph> {
  const { dropout = 0, twoPasses = false } = options
  const work = new Work(model, objective, options, twoPasses, runtime)
  await addLoss(work)
  await lowerAttention(work)
  addGradients(work)
  const { graph, forward, trained, predictionGraph } = work
  const rows = rowsOf(forward.masks, work.shapes, objective.probe.lengths)
  const fed = { dropout, rows }
  const firstPass = predictionGraph && finish(model, predictionGraph, forward, fed)
  const predictions = objective.keepsPredictions ? forward.predictions : []
  const whole = finish(model, graph, { ...forward, predictions }, fed)
  // Without optimizers, the casts of weights in half precision would run in each step.
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

/** The number of rows of each mask: a constant, or a Length, which differs between runs. */
type MaskRows = ReadonlyMap<DropoutMask, Length | number>

function rowsOf(masks: readonly DropoutMask[], shapes: ShapeMap, lengths: readonly Length[]): MaskRows {
  const entries = masks.map((mask) => {
    const { dims, second } = shapes.get(mask.of) ?? { dims: [], second: [] }
    const rows = lengthOf(lengths, dims[0], second[0]) ?? (dims[0] === second[0] ? dims[0] : undefined)
    if (rows === undefined) throw new StateError({ where: mask.input, what: 'the number of its rows has no name' })
    return [mask, rows] as const
  })
  return new Map(entries)
}

function finish(
  model: OnnxModel,
  graph: Graph,
  { parameters, predictions }: Forward,
  { dropout, rows }: { dropout: number; rows: MaskRows },
): LossGraph {
  graph.prune()
  const proto = graph.toModel()
  return {
    loss: LOSS,
    predictions,
    proto,
    tensors: parameters,
    async sessionModel(packed, copiedBytes) {
      if (packed === undefined) return sessionModel(model, keepMapped(proto, copiedBytes))
      // keepsRepeats: ONNX Runtime would make a Split of all slices, with more outputs than WebGPU has buffers.
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
        ...(draw === undefined ? {} : maskFeeds([...rows.keys()], lengthIn, dropout, draw)),
      }
      // ONNX Runtime in browsers refuses inputs that a graph does not have. The graph of a first pass, for example, has
      // no loss scale.
      return feedsFor(graph, all)
    },
  }
}
