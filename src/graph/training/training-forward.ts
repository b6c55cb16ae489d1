// The forward part of a training graph: the model with LoRA branches, its head applied to the rows that have a target,
// and their loss.

import { TensorProto_DataType as DataType, type NodeProto } from '../../formats/onnx/gen/onnx_pb.js'
import { gradientPath } from '../gradients/backward.js'
import { crossEntropy, type RowLoss } from '../gradients/losses.js'
import { loraInputs, valueInfo } from '../inject/inject.js'
import { TrainableLinears } from '../inject/trainable.js'
import type { CausalInputs } from '../inputs/causal-inputs.js'
import { findLinears, type Linear, type ModuleMap, reachesRowWise } from '../match/linears.js'
import { matchLayers } from '../match/match.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { type DropoutMask, LOSS_INPUTS } from './training-feeds.js'

/** A layer of the adapter that is trained. */
export interface TrainedLayer {
  /** Module name. */
  readonly name: string
  readonly d: number
  readonly k: number
  readonly rank: number
  readonly scaling: number
}

export interface ForwardOptions {
  readonly layers: readonly TrainedLayer[]
  /** Probability in [0, 1) that an element of a LoRA branch's input is dropped. */
  readonly dropout: number
  readonly modules: ModuleMap | undefined
}

/** Where rows without a target are dropped. */
interface RowChoice {
  /** The rows of all positions, and those of them with a target: between them lies the choice, which has no rule. */
  readonly all: Value
  readonly chosen: Value
  /** Logits of the rows with a target, (m, V). */
  readonly logits: Value
}

export interface TrainingForward extends RowChoice {
  readonly rowLoss: RowLoss
  /** Whether a factor is trained between `chosen` and `logits`. */
  readonly trainsHead: boolean
  readonly masks: readonly DropoutMask[]
}

/** Name of the loss among the graph's outputs. */
export const LOSS = 'loss'

/**
 * Rewrites the graph; its one output is the loss.
 *
 * @throws MismatchError when a layer has no module in the model, or another shape there
 */
export function buildForward(graph: Graph, inputs: CausalInputs, options: ForwardOptions): TrainingForward {
  graph.outputs = graph.outputs.filter(({ name }) => name === inputs.logits)
  dropEmptyCache(graph, inputs)
  graph.prune()
  const linears = findLinears(graph, options.modules)
  const placed = matchLayers(linears, options.layers)
  const adapted = new Set(placed.map(({ linear }) => linear.node))
  const trained = linearsOnPath(graph, linears, adapted, inputs.logits)
  const head = trained.find((linear) => linear.isHead && reachesRowWise(graph, linear, inputs.logits))

  declareInputs(graph, options.layers)
  const g = new Builder(graph, 'lora')
  const trainable = new TrainableLinears(graph, g)
  const inRows = new Map<NodeProto, Linear>()
  for (const linear of trained) {
    if (linear !== head && !inRows.has(linear.node)) inRows.set(linear.node, trainable.toRows(linear))
  }
  let choice: RowChoice
  if (head === undefined) choice = chooseLogits(g, inputs.logits)
  else {
    const { linear, all, chosen } = trainable.chooseRows(head, LOSS_INPUTS.rows)
    inRows.set(head.node, linear)
    choice = { all, chosen, logits: inputs.logits }
  }
  trainable.adapt(
    placed.map(({ linear, layer }) => {
      const { kind, input, output } = inRows.get(linear.node) as Linear
      return { linear: { ...linear, kind, input, output, name: layer.name }, scaling: layer.scaling }
    }),
    options.dropout,
  )
  const rowLoss = crossEntropy(g, choice.logits, LOSS_INPUTS.targets, LOSS_INPUTS.scale)
  graph.rename(rowLoss.loss, LOSS)
  graph.outputs = [valueInfo(LOSS, DataType.FLOAT, [])]
  const trainsHead = head !== undefined && adapted.has(head.node)
  return { ...choice, rowLoss: { ...rowLoss, loss: LOSS }, trainsHead, masks: trainable.masks }
}

/** The linear layers that are adapted, or that gradients of adapted ones pass. */
function linearsOnPath(
  graph: Graph,
  linears: readonly Linear[],
  adapted: ReadonlySet<NodeProto>,
  logits: Value,
): Linear[] {
  const outputs = [...adapted].map((node) => node.output[0])
  const between = new Set(gradientPath(graph, outputs, [logits]).nodes)
  return linears.filter(({ node }) => adapted.has(node) || between.has(node))
}

/** Adds the inputs of the loss, and of A (r, k) and Bᵀ (r, d) of each layer. */
function declareInputs(graph: Graph, layers: readonly TrainedLayer[]): void {
  graph.inputs.push(
    valueInfo(LOSS_INPUTS.rows, DataType.INT64, ['targets']),
    valueInfo(LOSS_INPUTS.targets, DataType.INT64, ['targets', 2]),
    valueInfo(LOSS_INPUTS.scale, DataType.FLOAT, []),
  )
  for (const { name, d, k, rank } of layers) {
    const { weightA, weightB } = loraInputs(name)
    graph.inputs.push(valueInfo(weightA, DataType.FLOAT, [rank, k]), valueInfo(weightB, DataType.FLOAT, [rank, d]))
  }
}

/** The choice where no head is found to make it in front of: among the finished logits. */
function chooseLogits(g: Builder, logits: Value): RowChoice {
  const all = g.op('Flatten', [logits], { axis: -1 })
  const chosen = g.op('Gather', [all, LOSS_INPUTS.rows], { axis: 0 })
  return { all, chosen, logits: chosen }
}

/** In training nothing is in the cache: what joins it to the new keys and values is left out. */
function dropEmptyCache(graph: Graph, { cache }: CausalInputs): void {
  for (const { past } of cache) {
    for (const node of graph.consumers(past)) {
      const [other, ...more] = node.input.filter((input) => input !== past)
      if (node.opType === 'Concat' && more.length === 0) graph.replaceUses(node.output[0], other)
    }
  }
}
