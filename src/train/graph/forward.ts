// Builds the forward part of a training graph: the model with LoRA branches, and the objective on its outputs.

import { siteInput } from '../../model/inject/sites.js'
import type { NamedLayer } from '../../model/match/forms/form.js'
import { findProduct } from '../../model/match/forms/forms.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import { withPointwise } from '../../model/match/forms/pointwise.js'
import { exposeProducts, findLinears, type Linear, type ModuleMap, rowsOfHead } from '../../model/match/linears.js'
import { LOGIT_BYTES } from '../../model/memory.js'
import { placeFactors } from '../../model/place/place.js'
import { DataType, type NodeProto } from '../../onnx/format/tensors.js'
import { gradientPath } from '../../onnx/gradients/backward.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { valueInfo } from '../../onnx/view/value-info.js'
import type { DropoutMask } from './dropout.js'
import { lossInBlocks } from './loss-blocks.js'
import { type Objective, ObjectiveGraph, type RowChoice, type TrainedTensor } from './objective-graph.js'
import type { BaseOpener } from './open-base.js'
import { quantizedGradient } from './quantized.js'
import { type Branch, magnitudeInput, TrainableLinears } from './trainable.js'
import { adaptExperts, type TrainedExperts } from './trainable-experts.js'
import { adaptLookups, type TrainedLookup } from './trainable-lookups.js'
import { dropEmptyCache } from './without-cache.js'

export type TrainedLayer = NamedLayer & Pick<Branch, 'rank' | 'scaling' | 'baseSquares'>

export interface TrainingGraphOptions {
  readonly layers: readonly TrainedLayer[]
  /** The adapted embeddings. */
  readonly lookups?: readonly TrainedLookup[] | undefined
  /** The adapted parameters of experts. `config` is the model's config.json, which says how they are stored. */
  readonly experts?: readonly TrainedExperts[] | undefined
  readonly config?: Readonly<Record<string, unknown>> | undefined
  /** Lets weights of the base be trained. */
  readonly base?: BaseOpener | undefined
  /** Probability in [0, 1) that an element of a LoRA branch's input is dropped. Default 0. */
  readonly dropout?: number | undefined
  /** Module name → node or initializer, if the graph's names do not tell. */
  readonly modules?: ModuleMap | undefined
  /** Also build the graph of the first pass, which gives the predictions for the loss of a step. Default false. */
  readonly twoPasses?: boolean | undefined
  /** Tokens of the largest batch. Small batches keep more values for the backward pass. */
  readonly tokens?: number | undefined
  /** Optimize the graph here, and open it without the runtime's optimizers. */
  readonly isOptimized?: boolean | undefined
  /** Above how many bytes logits are computed in blocks, and the bytes of a block. Default: {@link LOGIT_BYTES}. */
  readonly logitBytes?: typeof LOGIT_BYTES | undefined
  /** Most queries in a block of attention. Default: all. */
  readonly attentionRows?: number | undefined
}

export interface Forward {
  /** The loss before division by the normalizer. */
  readonly sum: Value
  readonly objective: ObjectiveGraph
  /**
   * For each layer and embedding A (r, k), Bᵀ (r, d), and m (d) of DoRA; then weights of the base; then the objective's
   * parameters.
   */
  readonly parameters: readonly TrainedTensor[]
  readonly masks: readonly DropoutMask[]
  readonly predictions: readonly Value[]
}

export const LOSS = 'loss'
/** The graph input with 1/normalizer, which multiplies the sum. */
export const LOSS_SCALE = 'loss/scale'
/** The input with all trained tensors in one vector, and the output of its gradient. */
export const PACKED = 'trained'
export const PACKED_GRADIENT = 'trained/gradient'

/** Rewrites the graph to give the loss and, with `predicts`, predictions. `hasGradients`: gradients will be added. */
export async function buildForward(
  graph: Graph,
  objective: Objective,
  options: TrainingGraphOptions,
  { predicts, hasGradients }: { predicts: boolean; hasGradients: boolean },
): Promise<Forward> {
  const objectiveGraph = new ObjectiveGraph(graph)
  const sum = await objective.forward(objectiveGraph)
  const predictions = predicts ? objectiveGraph.predictions : []
  const predicted = predictions.map((name) => valueInfo(name, DataType.FLOAT))
  graph.outputs = [valueInfo(sum, DataType.FLOAT, []), ...predicted]
  dropEmptyCache(graph)
  graph.prune()

  const names = options.layers.map(({ name }) => name)
  const found = withPointwise(graph, findLinears(graph, options.modules), names)
  const base = options.base?.open(graph, found)
  for (const { input, shape } of base?.trained ?? []) graph.inputs.push(valueInfo(input, DataType.FLOAT, shape))
  const { layers, lookups = [], experts = [], config = {} } = options
  const linears = exposeProducts(graph, found)
  const model = { graph, linears, embeddings: findEmbeddings(graph), config, use: 'training' } as const
  const placements = placeFactors(model, { layers, lookups, experts })
  adaptLookups(graph, lookups, placements, objectiveGraph.customGradients)
  const byName = new Map(layers.map((layer) => [layer.name, layer]))
  const placed = placements.flatMap((at) => {
    const layer = at.kind === 'layer' ? byName.get(at.part) : undefined
    return at.kind === 'layer' && layer !== undefined ? { at, linear: at.linear, layer } : []
  })
  const ofBase = base?.layersOf(linears) ?? []
  const ofExperts = adaptExperts(graph, experts, placements)
  const adapted = new Set([...placed, ...ofExperts.branches].map(({ linear }) => linear.node))
  for (const { node } of ofBase) adapted.add(node)
  const others = [...(base?.trained ?? []), ...objectiveGraph.parameters]
  // Look for the path to weights, not to outputs, at which it would end: layers between adapted layers count too.
  const weights = linears.filter(({ node }) => adapted.has(node)).map(({ weight }) => weight)
  const ofLookups = declareFactors(graph, lookups)
  const wrt = [...weights, ...ofExperts.stacks, ...[...ofLookups, ...others].map(({ input }) => input)]
  const between = new Set(gradientPath(graph, wrt, [sum], objectiveGraph.customGradients).nodes)
  const trained = linears.filter(({ node }) => adapted.has(node) || between.has(node))

  const stacked = experts.map((part) => ({ ...part, rank: part.rank * part.experts }))
  const factors = declareFactors(graph, [...options.layers, ...stacked])
  const trainable = new TrainableLinears(graph, new Builder(graph, 'lora'))
  const moves = objectiveGraph.choices.flatMap(
    (choice) => choiceBehind(graph, hasGradients ? trained : linears, choice) ?? [],
  )
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
  base?.openLayers(inRows, objectiveGraph.customGradients)
  const asRows = (linear: Linear, name: string): Linear => {
    const { form, last, input, output } = inRows.get(linear.node) as Linear
    return { ...linear, form, last, input, output, name }
  }
  const branches = placed.map(({ linear, layer, at: { start, d } }): Branch => {
    const { name, rank, scaling, baseSquares } = layer
    const part = d === layer.d ? undefined : { start, end: start + d }
    return { linear: asRows(linear, name), rank, scaling, baseSquares, part }
  })
  for (const branch of ofExperts.branches) {
    branches.push({ ...branch, linear: asRows(branch.linear, branch.linear.name) })
  }
  trainable.adapt(branches, options.dropout ?? 0)
  for (const value of trainable.constants) objectiveGraph.customGradients.set(value, { inputs: [], rule: () => [] })
  for (const { node, form } of trained) {
    const product = form.isQuantized ? findProduct(graph, node) : undefined
    const gradient = product && quantizedGradient(product)
    if (product !== undefined && gradient !== undefined) objectiveGraph.customGradients.set(product.output, gradient)
  }
  lossInBlocks(objectiveGraph, options.logitBytes ?? LOGIT_BYTES, hasGradients)
  graph.inputs.push(valueInfo(LOSS_SCALE, DataType.FLOAT, []))
  graph.rename(objectiveGraph.g.mul(sum, LOSS_SCALE), LOSS)
  graph.outputs = [valueInfo(LOSS, DataType.FLOAT, []), ...predicted]
  const parameters = [...factors, ...ofLookups, ...others]
  return { sum, objective: objectiveGraph, parameters, masks: trainable.masks, predictions }
}

/** Finds the layer before which rows can be chosen already, because everything after it treats rows separately. */
function choiceBehind(
  graph: Graph,
  linears: readonly Linear[],
  choice: RowChoice,
): { linear: Linear; choice: RowChoice; value: Value } | undefined {
  const flat = graph.producer(choice.all) as NodeProto
  for (const linear of linears) {
    const reshapes = linear.node === linear.last ? rowsOfHead(graph, linear, flat.input[0]) : undefined
    if (reshapes === undefined) continue
    // The chosen rows are in two axes, whatever shape all of them had.
    for (const { input, output } of reshapes) graph.replaceUses(output[0], input[0])
    return { linear, choice, value: flat.input[0] }
  }
  return undefined
}

/** Declares A (r, k) and Bᵀ (r, d), because products that make gradients with few columns are slow. */
function declareFactors(graph: Graph, layers: readonly TrainedLayer[]): TrainedTensor[] {
  return layers.flatMap(({ name, d, k, rank, baseSquares }) => {
    const [weightA, weightB] = [siteInput(name, 'A'), siteInput(name, 'B')]
    const tensors = [
      { name: `${name}.A`, input: weightA, shape: [rank, k] },
      { name: `${name}.B`, input: weightB, shape: [rank, d] },
      ...(baseSquares === undefined ? [] : [{ name: `${name}.magnitude`, input: magnitudeInput(name), shape: [d] }]),
    ]
    for (const { input, shape } of tensors) graph.inputs.push(valueInfo(input, DataType.FLOAT, shape))
    return tensors
  })
}
