// The sessions of one training run: the graph with gradients, the graph that only evaluates, each opened in the engine for
// the shapes that are run. Small graphs have one session for all shapes. Large ones take seconds to open that way, so that
// theirs are opened for one or two fixed shapes.

import type { ModuleMap } from '../graph/linears.js'
import type { CausalModel } from '../graph/model-folder.js'
import {
  buildLossGraph,
  buildTrainingGraph,
  type LossGraph,
  type TokenBatch,
  type TrainedParameter,
  type TrainingGraph,
} from '../graph/training-graph.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Remote } from '../runtime/rpc.js'
import type { Runtime } from '../runtime/runtime.js'
import { runtimeBehind } from '../runtime/session-table.js'
import type { Example } from '../text/records.js'
import { chooseBuckets, type PlanOptions } from './batches.js'
import type { EngineRun, TrainEngine } from './engine.js'
import type { TrainSettings } from './settings.js'

/** Nodes of the model above which a session for any shape takes seconds to open. */
const LARGE_GRAPH_NODES = 1500

/** Sessions open at a time. Each has its own memory for activations, and in default mode its own copy of the weights. */
const MOST_OPEN = 2

export interface SessionParts {
  readonly model: CausalModel
  readonly adapter: LoraAdapter
  readonly modules: ModuleMap | undefined
  readonly settings: TrainSettings
  readonly examples: readonly Example[]
  readonly evalExamples: readonly Example[] | undefined
}

export class ModelSessions {
  readonly runtimeName: string
  readonly planOptions: PlanOptions
  readonly #parts: SessionParts
  readonly #engine: Remote<TrainEngine>
  readonly #training: TrainingGraph
  readonly #evaluation: LossGraph | undefined
  /** Session numbers by graph and shape, the least recently used first. */
  readonly #open = new Map<string, number>()

  private constructor(
    parts: SessionParts,
    engine: Remote<TrainEngine>,
    runtime: Runtime,
    training: TrainingGraph,
    evaluation: LossGraph | undefined,
  ) {
    const { model, settings, examples, evalExamples = [] } = parts
    const isLarge = (model.onnx.proto.graph?.node.length ?? 0) > LARGE_GRAPH_NODES
    const lengths = [...examples, ...evalExamples].map(({ inputIds }) => inputIds.length)
    const limit = model.contextLength ?? Number.POSITIVE_INFINITY
    this.#parts = parts
    this.#engine = engine
    this.#training = training
    this.#evaluation = evaluation
    this.runtimeName = runtime.name
    this.planOptions = {
      batchSize: settings.batchSize,
      accumulation: settings.gradientAccumulation,
      limit,
      buckets: isLarge ? chooseBuckets(lengths, limit) : undefined,
    }
  }

  /**
   * Builds the graphs; sessions are opened when they are first needed.
   *
   * @throws what {@link buildTrainingGraph} throws, and RuntimeError when ONNX Runtime cannot be found
   */
  static async create(parts: SessionParts, engine: Remote<TrainEngine>): Promise<ModelSessions> {
    const { model, adapter, modules, evalExamples } = parts
    const runtime = runtimeBehind(engine, await engine.runtimeName())
    const options = {
      layers: [...adapter].map(([name, { d, k, rank, scaling }]) => ({ name, d, k, rank, scaling })),
      modules,
    }
    const { dropout } = adapter.config
    const training = await buildTrainingGraph(model.onnx, runtime, { ...options, dropout })
    const evaluation = evalExamples === undefined ? undefined : buildLossGraph(model.onnx, options)
    return new ModelSessions(parts, engine, runtime, training, evaluation)
  }

  get parameters(): readonly TrainedParameter[] {
    return this.#training.parameters
  }

  /** One run of a step. `step` and `run` choose the dropout masks. */
  async trainingRun(batch: TokenBatch, options: { normalizer: number; step: number; run: number }): Promise<EngineRun> {
    const { normalizer, step, run } = options
    const dropout = { seed: this.#parts.adapter.config.seed, step, run }
    const graph = this.#training
    const session = await this.#session('training', graph, batch)
    return { session, feeds: graph.feeds(batch, { normalizer, dropout }), loss: graph.loss }
  }

  async evaluationRun(batch: TokenBatch, normalizer: number): Promise<EngineRun> {
    const graph = this.#evaluation!
    const session = await this.#session('evaluation', graph, batch)
    return { session, feeds: graph.feeds(batch, { normalizer }), loss: graph.loss }
  }

  async #session(name: string, graph: LossGraph, { batch, sequence }: TokenBatch): Promise<number> {
    const isBaked = this.planOptions.buckets !== undefined
    const key = isBaked ? `${name} ${batch}×${sequence}` : name
    let session = this.#open.get(key)
    this.#open.delete(key)
    if (session === undefined) {
      for (const [oldest, id] of this.#open) {
        if (this.#open.size < MOST_OPEN) break
        await this.#engine.closeSession(id)
        this.#open.delete(oldest)
      }
      const { threads, lowMemory } = this.#parts.settings
      const model = await graph.sessionModel(isBaked ? { batch, sequence } : undefined)
      const opened = await this.#engine.openSession(model, { lowMemory, ...(threads === undefined ? {} : { threads }) })
      session = opened.id
    }
    this.#open.set(key, session)
    return session
  }
}
