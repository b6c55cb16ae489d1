// The two sessions of a training run: the graph with gradients, and the one that only evaluates. Each takes batches of any
// shape: sessions for fixed shapes open faster, but a second one of a large model costs 1.7 times the memory. So a shape is
// fixed only where all of a run fits one.

import type { ModuleMap } from '../graph/linears.js'
import type { CausalModel } from '../graph/model-folder.js'
import {
  type Bucket,
  buildLossGraph,
  buildTrainingGraph,
  type LossGraph,
  type TokenBatch,
  type TrainedParameter,
  type TrainingGraph,
} from '../graph/training-graph.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Remote } from '../runtime/rpc.js'
import { runtimeBehind } from '../runtime/session-table.js'
import type { Example } from '../text/records.js'
import { commonLength, type PlanOptions } from './batches.js'
import type { EngineRun, TrainEngine } from './engine.js'
import type { TrainSettings } from './settings.js'

/**
 * Nodes of the model from which on fixing the shape pays, and one session has to go before the other comes: each has its
 * own activations and, in default mode, its own copy of the weights. Opening such a session takes seconds.
 */
const LARGE_GRAPH_NODES = 2000

export interface SessionParts {
  readonly model: CausalModel
  readonly adapter: LoraAdapter
  readonly modules: ModuleMap | undefined
  readonly settings: TrainSettings
  readonly examples: readonly Example[]
}

export class ModelSessions {
  readonly runtimeName: string
  readonly planOptions: PlanOptions
  readonly #parts: SessionParts
  readonly #engine: Remote<TrainEngine>
  readonly #training: TrainingGraph
  readonly #evaluation: LossGraph
  readonly #isLarge: boolean
  readonly #sessions = new Map<LossGraph, number>()

  private constructor(
    parts: SessionParts,
    engine: Remote<TrainEngine>,
    runtimeName: string,
    graphs: { training: TrainingGraph; evaluation: LossGraph },
  ) {
    const { model, settings, examples } = parts
    const limit = model.contextLength ?? Number.POSITIVE_INFINITY
    this.runtimeName = runtimeName
    this.#parts = parts
    this.#engine = engine
    this.#training = graphs.training
    this.#evaluation = graphs.evaluation
    this.#isLarge = (model.onnx.proto.graph?.node.length ?? 0) >= LARGE_GRAPH_NODES
    this.planOptions = {
      batchSize: settings.batchSize,
      accumulation: settings.gradientAccumulation,
      limit,
      sequence: this.#isLarge
        ? commonLength(
            examples.map(({ inputIds }) => inputIds.length),
            limit,
          )
        : undefined,
    }
  }

  /**
   * Builds the graphs; sessions are opened when they are first needed.
   *
   * @throws what {@link buildTrainingGraph} throws, and RuntimeError when ONNX Runtime cannot be found
   */
  static async create(parts: SessionParts, engine: Remote<TrainEngine>): Promise<ModelSessions> {
    const { model, adapter, modules } = parts
    const runtime = runtimeBehind(engine, await engine.runtimeName())
    const layers = [...adapter].map(([name, { d, k, rank, scaling }]) => ({ name, d, k, rank, scaling }))
    const { dropout } = adapter.config
    const training = await buildTrainingGraph(model.onnx, runtime, { layers, modules, dropout })
    const evaluation = buildLossGraph(model.onnx, { layers, modules })
    return new ModelSessions(parts, engine, runtime.name, { training, evaluation })
  }

  get parameters(): readonly TrainedParameter[] {
    return this.#training.parameters
  }

  /** One run of a step. `step` and `run` choose the dropout masks. */
  async trainingRun(batch: TokenBatch, options: { normalizer: number; step: number; run: number }): Promise<EngineRun> {
    const { normalizer, step, run } = options
    const dropout = { seed: this.#parts.adapter.config.seed, step, run }
    const graph = this.#training
    const session = await this.#session(graph, this.planOptions.sequence === undefined ? undefined : batch)
    return { session, feeds: graph.feeds(batch, { normalizer, dropout }), loss: graph.loss }
  }

  async evaluationRun(batch: TokenBatch, normalizer: number): Promise<EngineRun> {
    const graph = this.#evaluation
    return { session: await this.#session(graph), feeds: graph.feeds(batch, { normalizer }), loss: graph.loss }
  }

  async #session(graph: LossGraph, shape?: Bucket): Promise<number> {
    const { threads, lowMemory, evaluateEvery } = this.#parts.settings
    let id = this.#sessions.get(graph)
    if (id !== undefined) return id
    // A run that evaluates again and again would open them again and again.
    if (this.#isLarge && evaluateEvery === undefined) await this.#closeAll()
    const model = await graph.sessionModel(shape)
    id = (await this.#engine.openSession(model, { lowMemory, ...(threads === undefined ? {} : { threads }) })).id
    this.#sessions.set(graph, id)
    return id
  }

  async #closeAll(): Promise<void> {
    for (const id of this.#sessions.values()) await this.#engine.closeSession(id)
    this.#sessions.clear()
  }
}
