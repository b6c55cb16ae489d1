// The list of passes that make a training graph of a model, each with the facts that it needs and gives.

import { StateError } from '../../base/errors.js'
import { elementCount } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { DataType, type NodeProto } from '../../formats/onnx/tensors.js'
import type { Feeds, SessionOpener } from '../../runtime/runtime.js'
import { setAccuracyLevel } from '../accuracy-level.js'
import { addInPlace, fuseTransposes, rewriteAttention, shareKeys } from '../fuse/for-training.js'
import { fuseGelu } from '../fuse/gelu.js'
import { buildBackward, checkDifferentiable, type GradientPath, gradientPath } from '../gradients/backward.js'
import { valueInfo } from '../inject/inject.js'
import { growWindows, takeBranchWithoutCache } from '../inputs/cache.js'
import { toLinearAttention } from '../lower/gated-delta-net.js'
import { lowerForTraining } from '../lower/lower.js'
import { findLinears } from '../match/linears.js'
import { recompute } from '../recompute/recompute.js'
import { declareShapes, isFloat, mergeReshapes, plainShapes } from '../shapes/plain-shapes.js'
import type { ProbedShape, ShapeMap } from '../shapes/shapes.js'
import { Builder, type Value } from '../view/builder.js'
import { Graph } from '../view/graph.js'
import { raiseOpset } from '../view/opset.js'
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
  /** Value that is computed again → its original. */
  copies!: ReadonlyMap<Value, Value>

  constructor(
    readonly model: OnnxModel,
    readonly objective: Objective,
    readonly options: TrainingGraphOptions,
    readonly predicts: boolean,
    readonly runtime?: SessionOpener,
    readonly hasGradients = runtime !== undefined,
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

type Fact =
  | 'computes in float32'
  | 'exact products'
  | 'no branches'
  | 'opset of gradients'
  | 'loss'
  | 'operators with gradients'
  | 'path'
  | 'shapes'
  | 'gradients'
  | 'plain shapes'
  | 'recomputed'

export interface Pass {
  readonly name: string
  /** Facts about the examples that the pass needs. Default: none. */
  readonly needs?: readonly Fact[]
  readonly gives?: readonly Fact[]
  run(work: Work): void | Promise<void>
}

export const FORWARD_PASSES: readonly Pass[] = [
  {
    name: 'compute in float32',
    gives: ['computes in float32'],
    run: ({ graph }) => computeInFloat32(graph),
  },
  {
    name: 'refuse what cannot be trained',
    needs: ['computes in float32'],
    run: ({ graph }) => checkTrainableForm(graph),
  },
  {
    // The gradients assume that inputs are not rounded.
    name: 'keep inputs of quantized products exact',
    gives: ['exact products'],
    run: ({ graph }) => setAccuracyLevel(graph, 0),
  },
  {
    name: 'take the branch without a cache',
    gives: ['no branches'],
    run({ graph }) {
      takeBranchWithoutCache(graph)
      growWindows(graph)
      toLinearAttention(graph)
    },
  },
  {
    name: 'raise the operator set',
    needs: ['no branches'],
    gives: ['opset of gradients'],
    run: ({ graph }) => raiseOpset(graph),
  },
  {
    name: 'add adapters and the loss',
    needs: ['computes in float32', 'exact products', 'no branches', 'opset of gradients'],
    gives: ['loss'],
    async run(work) {
      const { graph, objective, options } = work
      work.forward = await buildForward(graph, objective, options, work)
      graph.prune({ inputs: true })
    },
  },
]

export const ATTENTION_PASSES: readonly Pass[] = [
  {
    name: 'lower fused operators',
    needs: ['loss', 'opset of gradients'],
    gives: ['operators with gradients'],
    run({ graph, forward }) {
      lowerForTraining(graph, forward.objective.customGradients)
      fuseGelu(graph)
    },
  },
  {
    name: 'find the path of the gradient',
    needs: ['operators with gradients'],
    gives: ['path'],
    run(work) {
      const { graph, forward } = work
      const inputs = new Set(graph.inputs.map(({ name }) => name))
      work.parameters = forward.parameters.filter(({ name, input }) => inputs.has(input) || !work.isOptional(name))
      work.findPath()
      if (!work.hasGradients) return
      const custom = forward.objective.customGradients
      checkDifferentiable(work.path, custom)
      dropCasts(graph, work.path, custom)
      work.findPath()
    },
  },
  {
    name: 'measure shapes',
    needs: ['path'],
    gives: ['shapes'],
    async run(work) {
      const { graph, model, runtime, path, objective, forward, parameters } = work
      const { checks, fedGradients } = forward.objective
      const scale = { type: 'float32', data: Float32Array.of(1), dims: [] } as const
      const feeds = { [LOSS_SCALE]: scale, ...zeros(parameters) }
      const fixed = { feeds, masks: forward.masks, fedGradients }
      work.shapes = await measureShapes(graph, model, runtime!, path, objective.probe, fixed)
      for (const check of checks) check((value) => work.shapes.get(value))
    },
  },
  {
    name: 'turn and scale queries at once',
    needs: ['path', 'shapes'],
    run(work) {
      rewriteAttention(work.graph, work.path.nodes, work.shapes)
      work.findPath()
    },
  },
  {
    name: 'attend in blocks',
    needs: ['path', 'shapes'],
    async run(work) {
      const { graph, shapes, path, forward, options } = work
      const { customGradients } = forward.objective
      const { attentionRows: rows } = options
      if (rows === undefined) return
      // Pages that train on shorter texts need not load it.
      const { attendInBlocks } = await import('./attention-blocks.js')
      attendInBlocks({ graph, shapes, rows, customGradients, onPath: path.values })
      work.findPath()
    },
  },
]

export const TRAINING_PASSES: readonly Pass[] = [
  ...ATTENTION_PASSES,
  {
    name: 'share keys between heads',
    needs: ['path', 'shapes'],
    run(work) {
      shareKeys(work.graph, work.path.nodes, work.shapes)
      work.findPath()
    },
  },
  {
    name: 'part the predictions',
    needs: ['shapes'],
    run(work) {
      if (!work.predicts) return
      const { graph } = work
      const [loss, ...predictions] = graph.outputs
      graph.outputs = work.objective.keepsPredictions ? [loss, ...predictions] : [loss]
      work.predictionGraph = new Graph(graph.toModel())
      work.predictionGraph.outputs = predictions
      work.predictionGraph.prune({ inputs: true })
    },
  },
  {
    name: 'add the backward part',
    needs: ['shapes', 'operators with gradients'],
    gives: ['gradients'],
    run(work) {
      const { graph, g, shapes, forward, parameters } = work
      const wrt = parameters.map(({ input }) => input)
      const scaled = { custom: forward.objective.customGradients, scale: LOSS_SCALE }
      const gradients = buildBackward(g, shapes, new Map([[forward.sum, g.float(1)]]), wrt, scaled)
      work.trained = parameters.flatMap((parameter): TrainedParameter[] => {
        const gradient = gradients.get(parameter.input)
        if (gradient === undefined) {
          if (work.isOptional(parameter.name)) return []
          throw new StateError({ where: parameter.name, what: 'the loss does not depend on it' })
        }
        graph.outputs.push(valueInfo(gradient, DataType.FLOAT, parameter.shape))
        return [{ ...parameter, gradient }]
      })
    },
  },
  {
    name: 'keep one copy of quantized weights',
    needs: ['gradients', 'shapes'],
    run: ({ graph, shapes, path }) => keepOneCopy(graph, shapes, path.values),
  },
  {
    name: 'compute shapes plainly',
    needs: ['gradients', 'shapes'],
    gives: ['plain shapes'],
    run({ g, shapes, objective }) {
      const sources = objective.probe.lengths.flatMap(({ source }) => source ?? [])
      plainShapes(g, shapes, sources)
    },
  },
  {
    name: 'transpose in products',
    needs: ['gradients'],
    run({ graph, options }) {
      if (options.isOptimized) fuseTransposes(graph)
    },
  },
  {
    name: 'recompute what is cheap',
    needs: ['plain shapes'],
    gives: ['recomputed'],
    run(work) {
      const { graph, shapes, objective, options } = work
      const { lengths } = objective.probe
      const { tokens = Number.POSITIVE_INFINITY, attentionRows } = options
      const elements = (shape: ProbedShape) => typicalElements(shape, lengths)
      work.copies = recompute(graph, shapes, LOSS, { elements, tokens, isLong: attentionRows !== undefined })
    },
  },
  {
    name: 'add products in place',
    needs: ['recomputed'],
    run({ graph, shapes, options }) {
      if (options.isOptimized) addInPlace(graph, shapes)
      mergeReshapes(graph, shapes)
    },
  },
  { name: 'compute the loss first', needs: ['recomputed'], gives: [], run: ({ graph }) => computeFirst(graph, LOSS) },
  {
    name: 'declare shapes',
    needs: ['recomputed'],
    run({ graph, shapes, path, copies: again, objective }) {
      const isReshape = ({ opType, input }: NodeProto) => opType === 'Reshape' && isFloat(graph, input[0])
      const reshaped = graph.nodes.filter(isReshape).map(({ output }) => output[0])
      const copies = [...again].flatMap(([copy, original]) => (path.values.has(original) ? [copy] : []))
      const values = [...path.values, ...copies, ...reshaped]
      declareShapes(graph, shapes, values, (dim, second) => nameOfLength(objective.probe.lengths, dim, second))
    },
  },
]

/** Throws StateError if a pass comes before a fact that it needs. */
export async function runPasses(passes: readonly Pass[], work: Work): Promise<void> {
  const facts = new Set<Fact>()
  for (const { name, needs = [], gives = [], run } of passes) {
    const missing = needs.filter((fact) => !facts.has(fact))
    if (missing.length > 0) throw new StateError({ where: `pass ${name}`, what: `it needs ${missing.join(', ')}` })
    await run(work)
    for (const fact of gives) facts.add(fact)
  }
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
