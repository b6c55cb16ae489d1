// The passes that make a training graph of a model, in their order.

import { attempt, StateError, UnsupportedError } from '../../core/base/errors.js'
import { elementCount } from '../../core/base/tensor.js'
import { setAccuracyLevel } from '../../model/accuracy-level.js'
import { addInPlace, fuseTransposes, rewriteAttention, shareKeys } from '../../model/fuse/for-training.js'
import { fuseGelu } from '../../model/fuse/gelu.js'
import { growWindows, takeBranchWithoutCache } from '../../model/inputs/cache.js'
import { findLinears } from '../../model/match/linears.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import { DataType, type NodeProto } from '../../onnx/format/tensors.js'
import { buildBackward, checkDifferentiable, type GradientPath, gradientPath } from '../../onnx/gradients/backward.js'
import { toLinearAttention } from '../../onnx/lower/gated-delta-net.js'
import { lowerFused } from '../../onnx/lower/lower.js'
import { recompute } from '../../onnx/recompute/recompute.js'
import type { Feeds, SessionOpener } from '../../onnx/runtime/runtime.js'
import { declareShapes, isFloat, plainShapes } from '../../onnx/shapes/plain-shapes.js'
import type { ProbedShape, ShapeMap } from '../../onnx/shapes/shapes.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import { Graph } from '../../onnx/view/graph.js'
import { raiseOpset } from '../../onnx/view/opset.js'
import { valueInfo } from '../../onnx/view/value-info.js'
import { computeInFloat32, dropCasts, keepOneCopy } from './float32.js'
import { buildForward, type Forward, LOSS, LOSS_SCALE, type TrainingGraphOptions } from './forward.js'
import type { Objective, TrainedTensor } from './objective-graph.js'
import { measureShapes, nameOfLength, typicalElements } from './probe.js'
import { checkTrainableForm } from './trainable-form.js'

export interface TrainedParameter extends TrainedTensor {
  readonly gradient: string
}

/** A graph on its way to a training graph, and the results of passes. */
export class Work {
  readonly graph: Graph
  /** Appends the nodes of the backward part. */
  readonly g: Builder
  forward!: Forward
  parameters!: readonly TrainedTensor[]
  path!: GradientPath
  shapes!: ShapeMap
  trained!: readonly TrainedParameter[]
  predictionGraph: Graph | undefined

  constructor(
    readonly model: OnnxModel,
    readonly objective: Objective,
    readonly options: TrainingGraphOptions,
    readonly predicts: boolean,
    readonly runtime: SessionOpener,
    readonly hasGradients = true,
  ) {
    this.graph = new Graph(model.proto)
    this.g = new Builder(this.graph, 'backward')
  }

  findPath(): void {
    const { hasGradients, options, graph } = this
    // Without gradients, everything after the first layer.
    const begins = hasGradients ? this.parameters : findLinears(graph, options.modules).slice(0, 1)
    const wrt = begins.map(({ input }) => input)
    const { sum, objective } = this.forward
    this.path = gradientPath(graph, wrt, [sum], hasGradients ? objective.customGradients : undefined)
  }

  isOptional(name: string): boolean {
    return this.options.base?.optional.has(name) === true
  }
}

/** Adds the forward part, with adapters and the loss. */
export async function addLoss(work: Work): Promise<void> {
  const { graph, objective, options } = work
  computeInFloat32(graph)
  checkTrainableForm(graph)
  // The gradients assume that inputs are not rounded.
  setAccuracyLevel(graph, 0)
  takeBranchWithoutCache(graph)
  growWindows(graph)
  toLinearAttention(graph)
  raiseOpset(graph)
  work.forward = await buildForward(graph, objective, options, work)
  graph.prune({ inputs: true })
}

/** Lowers fused operators, measures shapes, and uses the shapes to make attention cheaper. */
export async function lowerAttention(work: Work): Promise<void> {
  const { graph, forward, options } = work
  const { customGradients } = forward.objective
  lowerFused(graph, customGradients)
  fuseGelu(graph)

  const inputs = new Set(graph.inputs.map(({ name }) => name))
  work.parameters = forward.parameters.filter(({ name, input }) => inputs.has(input) || !work.isOptional(name))
  work.findPath()
  if (work.hasGradients) {
    checkDifferentiable(work.path, customGradients)
    dropCasts(graph, work.path, customGradients)
    work.findPath()
  }

  work.shapes = await shapesOf(work)
  const { shapes } = work
  for (const check of forward.objective.checks) check((value) => shapes.get(value))
  rewriteAttention(graph, work.path.nodes, shapes)
  work.findPath()
  const { attentionRows: rows } = options
  if (rows === undefined) return
  // Pages that train on shorter texts need not load it.
  const { attendInBlocks } = await import('./attention-blocks.js')
  attendInBlocks({ graph, shapes, rows, customGradients, onPath: work.path.values })
  work.findPath()
}

/** Adds the backward part, and makes both parts cheaper. */
export function addGradients(work: Work): void {
  const { graph, g, shapes, objective, options } = work
  const { lengths } = objective.probe
  shareKeys(graph, work.path.nodes, shapes)
  work.findPath()
  const { path } = work
  partPredictions(work)
  work.trained = buildGradients(work)
  keepOneCopy(graph, shapes, path.values)
  plainShapes(
    g,
    shapes,
    lengths.flatMap(({ source }) => source ?? []),
  )
  if (options.isOptimized) fuseTransposes(graph)
  const { tokens = Number.POSITIVE_INFINITY, attentionRows } = options
  const elements = (shape: ProbedShape) => typicalElements(shape, lengths)
  const recomputed = recompute(graph, shapes, LOSS, { elements, tokens, isLong: attentionRows !== undefined })
  if (options.isOptimized) addInPlace(graph, shapes)
  computeFirst(graph, LOSS)

  const isReshape = ({ opType, input }: NodeProto) => opType === 'Reshape' && isFloat(graph, input[0])
  const reshaped = graph.nodes.filter(isReshape).map(({ output }) => output[0])
  const copies = [...recomputed].flatMap(([copy, original]) => (path.values.has(original) ? [copy] : []))
  const values = [...path.values, ...copies, ...reshaped]
  declareShapes(graph, shapes, values, (dim, second) => nameOfLength(lengths, dim, second))
}

function shapesOf({ graph, model, runtime, path, objective, forward, parameters }: Work): Promise<ShapeMap> {
  const scale = { type: 'float32', data: Float32Array.of(1), dims: [] } as const
  const feeds = { [LOSS_SCALE]: scale, ...zeros(parameters) }
  const { fedGradients } = forward.objective
  return measureShapes(graph, model, runtime, path, objective.probe, { feeds, masks: forward.masks, fedGradients })
}

/** Makes the graph of the predictions alone, if a first pass needs it. */
function partPredictions(work: Work): void {
  if (!work.predicts) return
  const { graph, objective } = work
  const [loss, ...predictions] = graph.outputs
  graph.outputs = objective.keepsPredictions ? [loss, ...predictions] : [loss]
  work.predictionGraph = new Graph(graph.toModel())
  work.predictionGraph.outputs = predictions
  work.predictionGraph.prune({ inputs: true })
}

function buildGradients(work: Work): TrainedParameter[] {
  const { graph, g, shapes, forward, parameters } = work
  const wrt = parameters.map(({ input }) => input)
  const seeds = new Map([[forward.sum, g.float(1)]])
  const { value: gradients, problems } = attempt(() => {
    return buildBackward(g, shapes, seeds, wrt, forward.objective.customGradients)
  })
  if (gradients === undefined) {
    const [problem] = problems
    if (!(problem instanceof UnsupportedError)) throw problem
    const hint = 'Train nothing in front of it, also no biases: `bias: none` or `bias: lora_only`'
    throw new UnsupportedError({ ...problem, hint })
  }
  return parameters.flatMap((parameter): TrainedParameter[] => {
    const ofSum = gradients.get(parameter.input)
    if (ofSum === undefined) {
      if (work.isOptional(parameter.name)) return []
      throw new StateError({ where: parameter.name, what: 'the loss does not depend on it' })
    }
    const gradient = g.mul(ofSum, LOSS_SCALE)
    graph.outputs.push(valueInfo(gradient, DataType.FLOAT, parameter.shape))
    return [{ ...parameter, gradient }]
  })
}

/** Puts a node last: ONNX Runtime begins with the last node without readers, so that logits are freed early. */
export function computeFirst(graph: Graph, output: Value): void {
  const node = graph.producer(output) as NodeProto
  graph.remove(node)
  graph.add(node)
}

function zeros(parameters: readonly TrainedTensor[]): Feeds {
  const zero = (dims: readonly number[]) =>
    ({ type: 'float32', data: new Float32Array(elementCount(dims)), dims }) as const
  return Object.fromEntries(parameters.map(({ input, shape }) => [input, zero(shape)]))
}
