// The two sessions of a training run: the graph with gradients, and the one that only evaluates. Each takes batches of any
// shape, and has its own activations and, in default mode, its own copy of the weights: one goes before the other comes.

import type { ModuleMap } from '../graph/match/linears.js'
import type { Model } from '../graph/model-folder.js'
import {
  buildLossGraph,
  buildTrainingGraph,
  type LossGraph,
  type RunnableGraph,
  type TrainedParameter,
  type TrainingGraph,
} from '../graph/training/training-graph.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Remote } from '../runtime/rpc.js'
import type { Feeds } from '../runtime/runtime.js'
import { runtimeBehind } from '../runtime/session-table.js'
import type { OpenTask } from '../tasks/task.js'
import { squaresOfRows } from './dora.js'
import type { Pass, TrainEngine } from './engine.js'
import type { TrainEvents } from './report.js'
import { type TrainSettings, usesBest } from './settings.js'

export interface SessionParts {
  readonly model: Model
  readonly open: OpenTask
  readonly adapter: LoraAdapter
  readonly modules: ModuleMap | undefined
  readonly settings: TrainSettings
  readonly on?: TrainEvents
}

export class TrainingSessions {
  readonly runtimeName: string
  readonly #parts: SessionParts
  readonly #engine: Remote<TrainEngine>
  readonly #training: TrainingGraph
  readonly #evaluation: LossGraph
  readonly #sessions = new Map<RunnableGraph, number>()

  private constructor(
    parts: SessionParts,
    engine: Remote<TrainEngine>,
    runtimeName: string,
    graphs: { training: TrainingGraph; evaluation: LossGraph },
  ) {
    this.runtimeName = runtimeName
    this.#parts = parts
    this.#engine = engine
    this.#training = graphs.training
    this.#evaluation = graphs.evaluation
  }

  /**
   * Builds the graphs; sessions are opened when they are first needed.
   *
   * @throws what {@link buildTrainingGraph} throws, and RuntimeError when ONNX Runtime cannot be found
   */
  static async create(parts: SessionParts, engine: Remote<TrainEngine>): Promise<TrainingSessions> {
    const { model, open, adapter, modules, settings } = parts
    const runtime = runtimeBehind(engine, await engine.runtimeName())
    const linears = adapter.parts('linear')
    const scaled = linears.filter(({ magnitude }) => magnitude !== undefined)
    const squares = await squaresOfRows(model, scaled, modules)
    const layers = linears.map(({ name, d, k, rank, scaling, weightA }) => {
      const fixedA = settings.loraFa ? Float32Array.from(weightA.data) : undefined
      return { name, d, k, rank, scaling, fixedA, baseSquares: squares.get(name) }
    })
    const { dropout } = adapter.config
    const changesBase = adapter.parts('replacement', 'token-rows').length > 0
    const base = changesBase ? await (await import('./whole-tensors.js')).baseOf(adapter, parts) : undefined
    const twoPasses = open.stepLoss !== undefined
    const tell = (done: number) => parts.on?.progress?.({ stage: 'prepare', done, total: 3 })
    tell(0)
    const training = await buildTrainingGraph(model.onnx, runtime, open, {
      layers,
      base,
      modules,
      dropout,
      twoPasses,
    })
    tell(1)
    const evaluation = await buildLossGraph(model.onnx, open, { layers, base, modules })
    tell(2)
    return new TrainingSessions(parts, engine, runtime.name, { training, evaluation })
  }

  get parameters(): readonly TrainedParameter[] {
    return this.#training.parameters
  }

  /** One pass of a step. `step` and `run` choose the dropout masks. */
  async trainingPass(feeds: Feeds, options: { normalizer: number; step: number; run: number }): Promise<Pass> {
    const { normalizer, step, run } = options
    const dropout = { seed: this.#parts.adapter.config.seed, step, run }
    const graph = this.#training
    return {
      session: await this.#session(graph),
      feeds: graph.feeds(feeds, { normalizer, dropout }),
      loss: graph.loss,
    }
  }

  /** The first of two passes of a step, with the dropout of the second. */
  async firstPass(
    feeds: Feeds,
    { step, run }: { step: number; run: number },
  ): Promise<Omit<Pass, 'loss'> & { readonly predictions: readonly string[] }> {
    const dropout = { seed: this.#parts.adapter.config.seed, step, run }
    const graph = this.#training.firstPass!
    const { predictions } = graph
    return { session: await this.#session(graph), feeds: graph.feeds(feeds, { normalizer: 1, dropout }), predictions }
  }

  async evaluationPass(feeds: Feeds, normalizer: number): Promise<Pass & { readonly predictions: readonly string[] }> {
    const graph = this.#evaluation
    const { loss, predictions } = graph
    return { session: await this.#session(graph), feeds: graph.feeds(feeds, { normalizer }), loss, predictions }
  }

  async #session(graph: RunnableGraph): Promise<number> {
    const { settings } = this.#parts
    const { device, threads, lowMemory } = settings
    let id = this.#sessions.get(graph)
    if (id !== undefined) return id
    // A run that evaluates again and again would open them again and again.
    if (settings.evalEvery === undefined && !usesBest(settings)) await this.#closeOthers(graph)
    const model = await graph.sessionModel()
    id = (
      await this.#engine.openSession(model, {
        lowMemory,
        exactProducts: true,
        ...(device === undefined ? {} : { executionProviders: [device].flat() }),
        ...(threads === undefined ? {} : { threads }),
      })
    ).id
    this.#sessions.set(graph, id)
    this.#parts.on?.progress?.({ stage: 'prepare', done: 3, total: 3 })
    return id
  }

  /** All but those that belong to the same step. */
  async #closeOthers(graph: RunnableGraph): Promise<void> {
    const isEvaluation = graph === this.#evaluation
    for (const [other, id] of this.#sessions) {
      if ((other === this.#evaluation) === isEvaluation) continue
      await this.#engine.closeSession(id)
      this.#sessions.delete(other)
    }
  }
}
