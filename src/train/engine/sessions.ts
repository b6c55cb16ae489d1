// The graph with gradients, and the one that evaluates. Each may copy the weights: one goes before the other comes.

import { joinedUp } from '../../core/base/tensor.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { ModuleMap } from '../../model/match/linears.js'
import { blocksFor } from '../../model/memory.js'
import type { Model } from '../../model/model-folder.js'
import type { Remote } from '../../onnx/runtime/rpc.js'
import { type Feeds, keepsOnGpu, type SessionOptions } from '../../onnx/runtime/runtime.js'
import { runtimeBehind } from '../../onnx/runtime/session-table.js'
import { PACKED, PACKED_GRADIENT } from '../graph/forward.js'
import {
  buildLossGraph,
  buildTrainingGraph,
  type LossGraph,
  type RunnableGraph,
  type TrainedParameter,
  type TrainingGraph,
} from '../graph/training-graph.js'
import type { TrainEvents } from '../report.js'
import { type TrainSettings, usesBest } from '../settings.js'
import type { OpenTask } from '../tasks/task.js'
import { squaresOfRows } from './dora.js'
import type { EngineSetup, TrainEngine } from './engine.js'
import { loraPlusRates } from './parameters.js'
import { openBase } from './whole-tensors.js'

export interface SessionParts {
  readonly model: Model
  readonly open: OpenTask
  readonly adapter: LoraAdapter
  readonly modules: ModuleMap | undefined
  readonly settings: TrainSettings
  /**
   * The most bytes of float weights that ONNX Runtime may copy to repack them; it reads the others from mapped pages.
   * Default: by the setting `memory`.
   */
  readonly copiedBytes?: number
  /** Tokens of the longest text. */
  readonly longest?: number
  /** Tokens of the longest text of the evaluation data. Default: as `longest`. */
  readonly evalLongest?: number
  readonly on?: TrainEvents
}

/** The most rows of the training graph's inputs. */
export function rowsOfRun({ open, settings }: Pick<SessionParts, 'open' | 'settings'>): number {
  return open.rowsOfBatch ?? (open.rowsOfExample ?? 1) * settings.batchSize
}

/** The most bytes that copies of weights take; `auto` has no bound of its own. */
export function copiesOf(memory: TrainSettings['memory']): number {
  return memory === 'low' ? 0 : Number.POSITIVE_INFINITY
}

export type SessionSettings = Partial<Pick<TrainSettings, 'device' | 'threads'>>

export function sessionOptions({ device, threads }: SessionSettings): SessionOptions {
  return { ...(device !== undefined && { executionProviders: [device].flat() }), ...(threads && { threads }) }
}

interface Draw {
  readonly step: number
  readonly run: number
}

export class TrainingSessions {
  readonly #sessions = new Map<RunnableGraph, Promise<number>>()
  #evaluation: LossGraph | undefined

  private constructor(
    private readonly parts: SessionParts,
    private readonly engine: Remote<TrainEngine>,
    readonly runtimeName: string,
    private readonly training: TrainingGraph | undefined,
    private readonly buildEvaluation: () => Promise<LossGraph>,
  ) {}

  /** `isTraining` false leaves out the graph with gradients. */
  static async create(parts: SessionParts, engine: Remote<TrainEngine>, isTraining = true): Promise<TrainingSessions> {
    const { open, adapter, modules, settings, longest = 0, evalLongest = longest } = parts
    // The worker loads its runtime while the first passes run here.
    const name = engine.runtimeName()
    name.catch(() => {})
    const { model, base } = await openBase(adapter, parts)
    const linears = adapter.parts('linear')
    const scaled = linears.filter(({ magnitude }) => magnitude !== undefined)
    const squares = await squaresOfRows(model, scaled, modules)
    const layers = linears.map(({ name, d, k, rank, scaling }) => {
      return { name, d, k, rank, scaling, baseSquares: squares.get(name) }
    })
    const lookups = adapter.parts('embedding').map(({ name, features: d, vocabulary: k, product }) => {
      return { name, d, k, rank: product.rank, scaling: product.scaling }
    })
    const experts = adapter.parts('parameter').map(({ name, experts, d, k, rank, scaling }) => {
      return { name, experts, d, k, rank, scaling }
    })
    const { dropout } = adapter.config
    const twoPasses = open.stepLoss !== undefined
    const tell = (done: number) => parts.on?.progress?.({ stage: 'prepare', done, total: 2 })
    tell(0)
    // WebGPU has no Scan.
    const isOnGpu = keepsOnGpu(sessionOptions(settings))
    const { config } = model
    const optionsFor = (tokens: number) => {
      return { layers, lookups, experts, config, base, modules, ...(isOnGpu ? {} : blocksFor(tokens)) }
    }
    // Pictures all have one size, which no length tells.
    const isText = open.probe.lengths.some(({ name }) => name !== 'batch')
    const tokens = isText && longest > 0 ? rowsOfRun(parts) * longest : undefined
    const training = isTraining
      ? await buildTrainingGraph(model.onnx, runtimeBehind(engine), open, {
          ...optionsFor(longest),
          dropout,
          twoPasses,
          tokens,
        })
      : undefined
    const evaluation = () => buildLossGraph(model.onnx, runtimeBehind(engine), open, optionsFor(evalLongest))
    const sessions = new TrainingSessions(parts, engine, await name, training, evaluation)
    if (!isTraining) await sessions.#evaluationGraph()
    tell(1)
    return sessions
  }

  async #evaluationGraph(): Promise<LossGraph> {
    this.#evaluation ??= await this.buildEvaluation()
    return this.#evaluation
  }

  /** Begins to open the session of the steps, while this thread has other work. */
  openTraining(): void {
    // The first step throws what is wrong.
    this.#session(this.training!).catch(() => {})
  }

  /** The tensors that change. Those of an evaluation have no gradient. */
  get parameters(): readonly TrainedParameter[] {
    return this.training?.parameters ?? this.#evaluation!.tensors.map((tensor) => ({ ...tensor, gradient: '' }))
  }

  get options(): SessionOptions {
    return sessionOptions(this.parts.settings)
  }

  /** Everything that the engine needs to start, except the values of the parameters. */
  setup(): EngineSetup {
    const { weightDecay, loraPlusRatio, maxGradNorm } = this.parts.settings
    const { parameters, options } = this
    const optimizer = { weightDecay, rates: loraPlusRates(parameters, loraPlusRatio) }
    const isPacked = this.training !== undefined && keepsOnGpu(options)
    const packed = isPacked ? { input: PACKED, gradient: PACKED_GRADIENT } : undefined
    return { parameters, optimizer, maxGradNorm, packed }
  }

  /** Feeds that take the place of the engine's parameters in a run. */
  feedsOf(values: readonly Float32Array[]): Feeds {
    if (keepsOnGpu(this.options)) {
      const data = joinedUp(values)
      return { [PACKED]: { type: 'float32', data, dims: [data.length] } }
    }
    const feeds = this.parameters.map(({ input, shape }, i) => {
      return [input, { type: 'float32', data: values[i], dims: shape }] as const
    })
    return Object.fromEntries(feeds)
  }

  /** One pass of a step. `step` and `run` choose the dropout masks. */
  trainingPass(feeds: Feeds, { normalizer, ...draw }: Draw & { normalizer: number }) {
    return this.#pass(this.training!, feeds, normalizer, draw)
  }

  firstPass(feeds: Feeds, draw: Draw) {
    return this.#pass(this.training!.firstPass!, feeds, 1, draw)
  }

  async evaluationPass(feeds: Feeds, normalizer: number) {
    return this.#pass(await this.#evaluationGraph(), feeds, normalizer)
  }

  async #pass(graph: RunnableGraph & { readonly loss?: string }, feeds: Feeds, normalizer: number, draw?: Draw) {
    const dropout = draw && { seed: this.parts.adapter.config.seed, ...draw }
    const { loss = '', predictions } = graph
    const session = await this.#session(graph)
    return { session, feeds: graph.feeds(feeds, { normalizer, dropout }), loss, predictions }
  }

  #session(graph: RunnableGraph): Promise<number> {
    const session = this.#sessions.get(graph) ?? this.#open(graph)
    this.#sessions.set(graph, session)
    return session
  }

  async #open(graph: RunnableGraph): Promise<number> {
    const { open, settings, copiedBytes = copiesOf(settings.memory) } = this.parts
    // A run that evaluates again and again would open them again and again.
    const takesTurns = open.takesTurns || settings.evalEvery !== undefined || usesBest(settings)
    if (!takesTurns) await this.#closeOthers(graph)
    const { parameters } = (keepsOnGpu(this.options) && this.training) || {}
    const model = await graph.sessionModel(parameters, copiedBytes)
    const lowMemory = copiedBytes < Number.POSITIVE_INFINITY && parameters !== undefined
    const options = { lowMemory, exactProducts: true }
    const { id } = await this.engine.openSession(model, { ...this.options, ...options })
    this.parts.on?.progress?.({ stage: 'prepare', done: 2, total: 2 })
    return id
  }

  /** Closes all sessions. A pass opens its session again. */
  close(): Promise<void> {
    return this.#closeOthers(undefined)
  }

  async #closeOthers(graph: RunnableGraph | undefined): Promise<void> {
    const isEvaluation = graph === this.#evaluation
    for (const [opened, id] of this.#sessions) {
      if (graph !== undefined && (opened === this.#evaluation) === isEvaluation) continue
      this.#sessions.delete(opened)
      await this.engine.closeSession(await id)
    }
  }
}
