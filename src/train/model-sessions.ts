// The two sessions of a training run: the graph with gradients, and the one that only evaluates. Each takes batches of any
// shape, and has its own activations and, in default mode, its own copy of the weights: one goes before the other comes.

import type { ModuleMap } from '../graph/match/linears.js'
import type { CausalModel } from '../graph/model-folder.js'
import {
  buildLossGraph,
  buildTrainingGraph,
  type LossGraph,
  type TokenBatch,
  type TrainedParameter,
  type TrainingGraph,
} from '../graph/training/training-graph.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Remote } from '../runtime/rpc.js'
import { runtimeBehind } from '../runtime/session-table.js'
import type { PlanOptions } from './batches.js'
import type { EngineRun, TrainEngine } from './engine.js'
import type { TrainSettings } from './settings.js'

export interface SessionParts {
  readonly model: CausalModel
  readonly adapter: LoraAdapter
  readonly modules: ModuleMap | undefined
  readonly settings: TrainSettings
}

export class ModelSessions {
  readonly runtimeName: string
  readonly planOptions: PlanOptions
  readonly #parts: SessionParts
  readonly #engine: Remote<TrainEngine>
  readonly #training: TrainingGraph
  readonly #evaluation: LossGraph
  readonly #sessions = new Map<LossGraph, number>()

  private constructor(
    parts: SessionParts,
    engine: Remote<TrainEngine>,
    runtimeName: string,
    graphs: { training: TrainingGraph; evaluation: LossGraph },
  ) {
    const { model, settings } = parts
    this.runtimeName = runtimeName
    this.#parts = parts
    this.#engine = engine
    this.#training = graphs.training
    this.#evaluation = graphs.evaluation
    this.planOptions = {
      batchSize: settings.batchSize,
      accumulation: settings.gradientAccumulation,
      limit: model.contextLength ?? Number.POSITIVE_INFINITY,
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
    const layers = adapter.parts('linear').map(({ name, d, k, rank, scaling }) => ({ name, d, k, rank, scaling }))
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
    return {
      session: await this.#session(graph),
      feeds: graph.feeds(batch, { normalizer, dropout }),
      loss: graph.loss,
    }
  }

  async evaluationRun(batch: TokenBatch, normalizer: number): Promise<EngineRun> {
    const graph = this.#evaluation
    return { session: await this.#session(graph), feeds: graph.feeds(batch, { normalizer }), loss: graph.loss }
  }

  async #session(graph: LossGraph): Promise<number> {
    const { threads, lowMemory, evaluateEvery } = this.#parts.settings
    let id = this.#sessions.get(graph)
    if (id !== undefined) return id
    // A run that evaluates again and again would open them again and again.
    if (evaluateEvery === undefined) await this.#closeAll()
    const model = await graph.sessionModel()
    id = (await this.#engine.openSession(model, { lowMemory, ...(threads === undefined ? {} : { threads }) })).id
    this.#sessions.set(graph, id)
    return id
  }

  async #closeAll(): Promise<void> {
    for (const id of this.#sessions.values()) await this.#engine.closeSession(id)
    this.#sessions.clear()
  }
}
