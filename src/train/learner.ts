// A model whose adapter learns a task: `train`, `openTrainer` and evaluations all build on it. Gradients add up until
// the next step.

import type { Model } from '../model/model-folder.js'
import { type Engine, openEngine } from '../onnx/runtime/host.js'
import type { Remote } from '../onnx/runtime/rpc.js'
import type { Feeds } from '../onnx/runtime/runtime.js'
import { runtimeBehind } from '../onnx/runtime/session-table.js'
import type { EngineState, TrainEngine } from './engine/engine.js'
import { startOf, writeParameters } from './engine/parameters.js'
import { type SessionParts, type SessionSettings, sessionOptions, TrainingSessions } from './engine/sessions.js'
import { checkRuns } from './graph/reach.js'
import type { Batch } from './rows/batches.js'
import type { StepRun } from './tasks/task.js'

/** If a worker has the engine, this thread does not load its code. */
const loadEngine = async () => (await import('./engine/engine.js')).TrainEngine

/** The mean loss of a batch, the divisor of that mean, and the predictions by name. */
export interface Predicted {
  readonly loss: number
  readonly normalizer: number
  readonly outputs: Feeds
}

export class Learner {
  /** Names of the tensors that learn. */
  readonly names: readonly string[]
  readonly engine: Remote<TrainEngine>
  /** Steps of the optimizer so far. */
  steps = 0
  /** Runs of the training graph since the last step. They choose the dropout masks, together with the step. */
  #runs = 0
  #closing: Promise<void> | undefined

  private constructor(
    readonly parts: SessionParts,
    readonly sessions: TrainingSessions,
    private readonly opened: Engine<TrainEngine>,
  ) {
    this.names = sessions.parameters.map(({ name }) => name)
    this.engine = opened.remote
  }

  /** Throws UnsupportedError if the runtime lacks an operator of the model. It runs before weights are downloaded. */
  static async check({ onnx, runtime }: Model, settings: SessionSettings): Promise<void> {
    if (!onnx.isAway) return
    const engine = await openEngine(runtime, 'train', loadEngine, settings.threads)
    try {
      await checkRuns(onnx, runtimeBehind(engine.remote), sessionOptions(settings))
    } finally {
      await engine.close().catch(() => {})
    }
  }

  /** Without `isTraining`, only the graph for evaluations is opened. */
  static async open(parts: SessionParts, isTraining = true): Promise<Learner> {
    const engine = await openEngine(parts.model.runtime, 'train', loadEngine, parts.settings.threads)
    try {
      return new Learner(parts, await TrainingSessions.create(parts, engine.remote, isTraining), engine)
    } catch (error) {
      await engine.close().catch(() => {})
      throw error
    }
  }

  /** Starts from a saved state, or from the adapter with no steps taken. */
  async start(state: EngineState = startOf(this.parts.adapter, this.names), steps = state.updates): Promise<void> {
    this.steps = steps
    await this.engine.start(this.sessions.setup(), state)
  }

  /** Returns the mean loss of the batches. A loss that compares examples of several batches takes a first pass. */
  async forwardBackward(batches: readonly Batch[]): Promise<number> {
    const { open } = this.parts
    if (open.stepLoss === undefined) {
      const normalizer = open.normalizer(batches.flatMap(({ examples }) => examples))
      let loss = 0
      for (const batch of batches) loss += (await this.backward(await this.#feeds(batch), normalizer)).loss
      return loss
    }
    const feeds: Feeds[] = []
    for (const batch of batches) feeds.push(await this.#feeds(batch))
    const runs: StepRun<unknown>[] = []
    for (const [i, { examples }] of batches.entries()) {
      runs.push({ outputs: await this.predict(feeds[i], { ahead: i }), examples })
    }
    const { loss, feeds: gradients } = open.stepLoss(runs)
    for (const [i, batch] of feeds.entries()) await this.backward({ ...batch, ...gradients[i] })
    return loss
  }

  async #feeds({ examples, length }: Batch): Promise<Feeds> {
    await this.parts.open.prepare?.(examples)
    return this.parts.open.collate(examples, length)
  }

  /**
   * Runs the graph without a loss, and returns its predictions. `ahead` asks for the dropout of a coming training run:
   * 0 for the next, 1 for the one after it. `factors` replaces the current values.
   */
  async predict(feeds: Feeds, { ahead, factors }: { ahead?: number; factors?: readonly Float32Array[] | undefined }) {
    const { sessions, parts, steps: step } = this
    const isPlain = ahead === undefined && parts.adapter.config.dropout > 0
    const pass = isPlain
      ? await sessions.evaluationPass(feeds, 1)
      : await sessions.firstPass(feeds, { step, run: this.#runs + (ahead ?? 0) })
    const replaced = factors && sessions.feedsOf(factors)
    return this.engine.forward({ ...pass, feeds: { ...pass.feeds, ...replaced } }, pass.predictions)
  }

  /** Runs the training graph once, and adds its gradients to the gradients since the last step. */
  async backward(feeds: Feeds, normalizer = 1) {
    const pass = await this.sessions.trainingPass(feeds, { normalizer, step: this.steps, run: this.#runs++ })
    return this.engine.accumulate(pass)
  }

  /** Takes an optimizer step and returns the gradients' norm. If it or the loss is not finite, nothing changes. */
  async step(loss: number, learningRate: number): Promise<number> {
    this.#runs = 0
    const norm = await this.engine.update(loss, learningRate)
    if (Number.isFinite(loss) && Number.isFinite(norm)) this.steps++
    return norm
  }

  /** Runs examples without dropout. `factors` replaces the current values. Without `hasLoss`, the loss is NaN. */
  async forward(
    { examples, length }: Batch,
    { factors, hasLoss = true }: { factors?: readonly Float32Array[] | undefined; hasLoss?: boolean } = {},
  ): Promise<Predicted> {
    const { open } = this.parts
    const normalizer = open.normalizer(examples)
    const pass = await this.sessions.evaluationPass(await this.#feeds({ examples, length }), normalizer)
    const lossOutput = open.stepLoss === undefined ? [pass.loss] : []
    const feeds = { ...pass.feeds, ...(factors && this.sessions.feedsOf(factors)) }
    const outputs = await this.engine.forward({ ...pass, feeds }, [...lossOutput, ...pass.predictions])
    if (!hasLoss) return { loss: Number.NaN, normalizer, outputs }
    const loss = open.stepLoss?.([{ outputs, examples }]).loss ?? Number(outputs[pass.loss].data[0])
    return { loss, normalizer, outputs }
  }

  /** Writes values into the adapter, by default the engine's current values. */
  async writeFactors(values?: readonly Float32Array[]): Promise<void> {
    writeParameters(this.parts.adapter, this.names, values ?? (await this.engine.parameters()))
  }

  /** Does not throw: the run is over, whether its worker ends well or not. */
  close(): Promise<void> {
    this.#closing ??= this.opened.close().catch(() => {})
    return this.#closing
  }
}
