// A trainer for loops of your own: gradients of any loss, steps of AdamW, and texts that the current factors write. The
// graphs of training and of sampling read the base's weights from one mapped file.

import type { Directory, Target } from '../../core/base/bytes.js'
import { ConfigError, NumericError, StateError } from '../../core/base/errors.js'
import { checkOptions } from '../../core/base/options.js'
import { Turns } from '../../core/base/turns.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { saveInto, takeOver } from '../../lora/peft/adapter-folder.js'
import { recordOfBase } from '../../model/base-record.js'
import type { Model } from '../../model/model-folder.js'
import { IGNORED } from '../../model/text/records.js'
import { sampleTexts, type TextSession } from '../../run/generate/generate.js'
import { ModelSession } from '../../run/model-session.js'
import type { Prompt } from '../../run/session.js'
import { readParameters } from '../engine/parameters.js'
import { rowsOfRun } from '../engine/sessions.js'
import { Learner } from '../learner.js'
import { type MicroBatch, planEvaluation } from '../rows/batches.js'
import type { Run } from '../run.js'
import { checkFingerprint, fingerprintOf } from '../saved/fingerprint.js'
import { type RunState, readState, writeState } from '../saved/run-folder.js'
import { causalLm } from '../tasks/causal-lm.js'
import { dpo } from '../tasks/dpo.js'
import type { Task } from '../tasks/task.js'
import { type EncodedExample, encodeExamples, type TrainerExample } from './examples.js'
import { FORWARD_BACKWARD_OPTIONS, SAMPLE_OPTIONS, STEP_OPTIONS, TRAINER_SAVE_OPTIONS } from './gen/options.js'
import { checkDerivatives, checkResult, type LossFunction, type LossResult, type LossRow, namedLoss } from './losses.js'
import { type ScoredTokens, type TokenScores, temperatureFeed } from './token-scores.js'
import type {
  ForwardBackwardOptions,
  ForwardBackwardResult,
  Sample,
  SampleOptions,
  StepOptions,
  StepReport,
  TrainerSaveOptions,
} from './trainer-options.js'

/** How a trainer is opened: what it goes on from, how it closes, and how it writes. */
interface Opening {
  readonly resume?: Directory | undefined
  readonly closesModel?: boolean
  readonly openTarget?: (target: Target, where: string) => Directory
}

const LIVE = 'live'
/** Texts that are sampled at the same time. */
const SAMPLED = 32
/** With little memory, the session keeps at most this many bytes of caches for texts whose next turns may come. */
const SMALL_PREFIX_CACHE = 2 ** 26

/** A model with an adapter that learns. {@link openTrainer} opens it. Calls run one after the other. */
export class Trainer {
  readonly #turns = new Turns()
  /** The factors that training began with: those of the reference. */
  readonly #start: readonly Float32Array[]
  #loss: number | undefined
  #sampler: { readonly session: ModelSession<Model>; steps: number } | undefined
  #disposal: Promise<void> | undefined

  #fingerprint: Record<string, string> = {}
  readonly #open: ScoredTokens

  /** @internal */
  constructor(
    readonly inner: Learner,
    private readonly run: Run,
    private readonly opening: Opening = {},
  ) {
    this.#open = run.open as ScoredTokens
    this.#start = readParameters(run.adapter, inner.names)
  }

  /** @internal */
  static async open(run: Run, opening: Opening): Promise<Trainer> {
    const inner = await Learner.open(run)
    try {
      const trainer = new Trainer(inner, run, opening)
      const fingerprint = await fingerprintOf(run, 0)
      trainer.#fingerprint = fingerprint
      const { resume } = opening
      const check = (saved: RunState) => checkFingerprint(saved.fingerprint, fingerprint, resume!.name)
      const state = resume && (await readState(resume, inner.names, check))
      await inner.start(state?.engine, state?.run.step)
      if (resume !== undefined) await takeOver(resume)
      return trainer
    } catch (error) {
      await inner.close()
      throw error
    }
  }

  /** Steps of the optimizer so far. */
  get steps(): number {
    return this.inner.steps
  }

  /** The adapter that learns. Its factors are brought up to date only by `save`, `saveState` and `sample`. */
  get adapter(): LoraAdapter {
    return this.run.adapter
  }

  /** The model that learns. Do not close it before the trainer. */
  get model(): Model {
    return this.run.model
  }

  /**
   * Computes a loss over examples and adds its gradients to those since the last `step`. Examples run in batches of
   * `batchSize`, longest first. Token losses are means over the weights of the call; give a `normalizer` to make
   * several calls equal one. `dpo` takes pairs, the better answer first; records become these pairs by
   * themselves.
   *
   * @throws DataError for an example that cannot be used; ConfigError for an unknown loss, or an example without what
   *   the loss needs; ShapeError and NumericError for what a loss function returns; StateError when the trainer is
   *   disposed
   *
   * @example
   * const trainer = await openTrainer('models/union-3m', { config: { rank: 4 } })
   * const { loss } = await trainer.forwardBackward([{ prompt: 'Who is it? ', completion: 'It is the captain.' }])
   * await trainer.step({ learningRate: 1e-3 })
   * const [[answer]] = await trainer.sample(['Who is it? '], { maxNewTokens: 8 })
   * console.log(loss, answer.text)
   * await trainer.dispose()
   */
  forwardBackward(
    examples: readonly TrainerExample[],
    options: ForwardBackwardOptions = {},
  ): Promise<ForwardBackwardResult> {
    return this.#take(async () => {
      checkOptions(options, 'forwardBackward', FORWARD_BACKWARD_OPTIONS)
      const { loss = 'cross-entropy', temperature = 1, check = false } = options
      const encoded = await this.#encode(examples, loss === 'dpo' ? dpo : causalLm)
      const compute = typeof loss === 'function' ? loss : namedLoss(loss, options)
      // By default the reference is the model as it was when the trainer was opened.
      const referenced = loss === 'dpo' ? await this.#withReference(encoded, temperature) : encoded
      return this.#pass(referenced, compute, { temperature, check, isKnown: loss === 'cross-entropy' })
    })
  }

  /**
   * @internal Like {@link forwardBackward}, for texts that the current factors have sampled: their log-probabilities
   *   are known, which saves a pass through the model.
   */
  learnFromSamples(examples: readonly TrainerExample[], loss: LossFunction, temperature: number) {
    return this.#take(async () => {
      return this.#pass(await this.#encode(examples, causalLm), loss, { temperature, isKnown: true })
    })
  }

  /**
   * Gives ln(probability) of the tokens of examples, (n) each, and 0 for tokens that are not targets. Nothing is
   * learned.
   *
   * @param options `reference`: of the model as it was when the trainer was opened
   */
  logprobs(
    examples: readonly TrainerExample[],
    { temperature = 1, reference = false }: { temperature?: number; reference?: boolean } = {},
  ): Promise<Float32Array[]> {
    return this.#take(async () => {
      const encoded = await this.#encode(examples, causalLm)
      const scores = await this.#scores(encoded, temperature, reference, false)
      return encoded.map((example, i) => spread(example, scores[i].logprobs))
    })
  }

  /**
   * Takes a step of AdamW with the gradients since the last one.
   *
   * @throws StateError without a call of `forwardBackward` before; NumericError when the loss or the gradients are not
   *   finite: then nothing has changed
   */
  step(options: StepOptions): Promise<StepReport> {
    return this.#take(async () => {
      checkOptions(options, 'step', STEP_OPTIONS)
      const { learningRate } = options
      const loss = this.#loss
      if (loss === undefined) {
        throw new StateError({ where: 'step', what: 'there are no gradients', hint: 'Call forwardBackward first' })
      }
      this.#loss = undefined
      const gradientNorm = await this.inner.step(loss, learningRate)
      if (!Number.isFinite(loss) || !Number.isFinite(gradientNorm)) {
        throw new NumericError({
          where: `step ${this.steps + 1}`,
          what: `the loss is ${loss}, and the gradient's norm ${gradientNorm}`,
          hint: 'Lower the learning rate, or clip gradients harder',
        })
      }
      return { step: this.steps, gradientNorm }
    })
  }

  /**
   * Continues prompts with the current factors. All texts share steps, and a long prompt is read once for its `n`
   * texts.
   *
   * @returns for each prompt its texts
   * @throws what `generate` of a session throws
   */
  sample(prompts: readonly Prompt[], given: SampleOptions = {}): Promise<Sample[][]> {
    return this.#take(async () => {
      checkOptions(given, 'sample', SAMPLE_OPTIONS)
      const { n = 1, ...options } = given
      const session = await this.#liveSession()
      const all = prompts.flatMap((prompt) => Array<Prompt>(n).fill(prompt))
      const plain = { temperature: 1, topK: Number.POSITIVE_INFINITY, topP: 1, minP: 0, repetitionPenalty: 1 }
      const { chatTemplate, chatTemplateArgs } = this.run.options
      const texts = await sampleTexts(session as unknown as TextSession, all, {
        ...{ ...plain, chatTemplate, chatTemplateArgs, batchSize: SAMPLED },
        ...options,
        adapter: LIVE,
      })
      const samples = texts.map(({ promptIds, sampledIds, sampledLogprobs, text, finish, seed }): Sample => {
        const promptTokens = promptIds.length
        const ids = Int32Array.from([...promptIds, ...sampledIds])
        const weights = new Float32Array(ids.length).fill(1, promptTokens)
        const logprobs = new Float32Array(ids.length)
        logprobs.set(sampledLogprobs, promptTokens)
        return { ids, weights, logprobs, promptTokens, text, finish, seed }
      })
      return prompts.map((_, i) => samples.slice(i * n, (i + 1) * n))
    })
  }

  /**
   * Gives the adapter with the current factors, the same object at each call. With `out`, also writes it as a folder of
   * PEFT.
   *
   * @throws FileError for a folder with an adapter that this process did not write, unless `overwrite` is set
   */
  save(out?: Target, options: TrainerSaveOptions = {}): Promise<LoraAdapter> {
    return this.#take(async () => {
      checkOptions(options, 'save', TRAINER_SAVE_OPTIONS)
      const { adapter, model } = this
      const folder = out === undefined ? undefined : this.#folder(out)
      await this.inner.writeFactors()
      adapter.trainedOn = await recordOfBase(model)
      if (folder !== undefined) await saveInto(adapter, folder, options)
      return adapter
    })
  }

  /**
   * Writes the adapter and all that `resume` needs. Gradients since the last step are not saved.
   *
   * @throws FileError as `save` does; a trainer may write over the state that it goes on from
   */
  saveState(out: Target, options: TrainerSaveOptions = {}): Promise<void> {
    return this.#take(async () => {
      checkOptions(options, 'saveState', TRAINER_SAVE_OPTIONS)
      const { inner, steps: step } = this
      const folder = this.#folder(out)
      const run = { step, fingerprint: this.#fingerprint, evaluations: [], samples: [] }
      await inner.writeFactors()
      const state = await inner.engine.state()
      await saveInto(this.adapter, folder, options, (made) => writeState(made, inner.names, state, run))
    })
  }

  /** Closes the trainer, its sampler, and the model if the trainer opened it. */
  dispose(): Promise<void> {
    this.#disposal ??= this.#close()
    return this.#disposal
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  async #close(): Promise<void> {
    await this.#turns.idle
    try {
      await this.#sampler?.session.dispose()
      await this.inner.close()
    } finally {
      if (this.opening.closesModel) await this.model.close()
    }
  }

  #folder(out: Target): Directory {
    return this.opening.openTarget?.(out, 'out') ?? (out as Directory)
  }

  #take<T>(work: () => Promise<T>): Promise<T> {
    return this.#turns.take(async () => {
      if (this.#disposal !== undefined) throw new StateError({ where: 'trainer', what: 'it is disposed' })
      return work()
    })
  }

  async #encode(examples: readonly TrainerExample[], task: object): Promise<EncodedExample[]> {
    if (this.#hasLittleMemory) {
      // ONNX Runtime keeps the memory of a session's runs as long as the session is open.
      await this.#sampler?.session.dispose()
      this.#sampler = undefined
    } else await this.#sampler?.session.engine.forgetPrefixes()
    return encodeExamples(examples, task as Task, this.run.encoding)
  }

  async #withReference(encoded: readonly EncodedExample[], temperature: number): Promise<EncodedExample[]> {
    if (encoded.every(({ targets }) => targets.reference !== undefined)) return [...encoded]
    const scores = await this.#scores(encoded, temperature, true, false)
    return encoded.map((example, i) => {
      const { reference = scores[i].logprobs } = example.targets
      return { ...example, targets: { ...example.targets, reference } }
    })
  }

  /** `isKnown` is true if the loss needs no values of the model for its derivatives, so that one pass is enough. */
  async #pass(
    encoded: readonly EncodedExample[],
    loss: LossFunction,
    { temperature, check = false, isKnown }: { temperature: number; check?: boolean; isKnown: boolean },
  ): Promise<ForwardBackwardResult> {
    const before = isKnown ? undefined : await this.#scores(encoded, temperature, false, true)
    const rowsOf = (scores: readonly (TokenScores | undefined)[] | undefined): LossRow[] => {
      return encoded.map(({ targets }, i) => {
        const { oldLogprobs = new Float32Array(targets.tokens.length) } = targets
        return { ...targets, logprobs: scores?.[i]?.logprobs ?? oldLogprobs, entropies: scores?.[i]?.entropies }
      })
    }
    const rows = rowsOf(before)
    const result = await loss(rows)
    checkResult(result, rows)
    if (check) await checkDerivatives(loss, rows, result)
    const after = await this.#backward(encoded, result, temperature)
    const found = before ?? encoded.map((_, i) => after.get(i))
    const known = rowsOf(found)
    const { loss: value, metrics = {} } = before === undefined ? await loss(known) : result
    this.#loss = (this.#loss ?? 0) + value
    return { loss: value, logprobs: encoded.map((example, i) => spread(example, known[i].logprobs)), metrics }
  }

  /** `isStep` is true for the values of the coming step, with its dropout. */
  async #scores(encoded: readonly EncodedExample[], temperature: number, isReference: boolean, isStep: boolean) {
    const open = this.#open
    const found = encoded.map((): TokenScores => ({ logprobs: new Float32Array(), entropies: undefined }))
    const factors = isReference ? this.#start : undefined
    for (const [i, plan] of this.#plansOf(encoded).entries()) {
      const batch = plan.examples.map((index) => encoded[index])
      const feeds = { ...open.collate(batch, plan.sequence), ...temperatureFeed(temperature) }
      const outputs = await this.inner.predict(feeds, { ...(isStep && { ahead: i }), factors })
      const scores = open.scoresOf(outputs, batch.map(countOf))
      for (const [j, index] of plan.examples.entries()) found[index] = scores[j]
    }
    return found
  }

  async #backward(
    encoded: readonly EncodedExample[],
    { gradients, entropyGradients }: LossResult,
    temperature: number,
  ) {
    const open = this.#open
    const isMoved = (i: number) =>
      [gradients, entropyGradients].some((lists) => lists?.[i].some((value) => value !== 0))
    const counted = [...encoded.keys()].filter((i) => countOf(encoded[i]) > 0)
    const moved = counted.filter(isMoved)
    const scores = new Map<number, TokenScores>()
    if (counted.length > 0 && moved.length === 0) return scores
    // Examples without a gradient need not run again. With dropout they do, because masks depend on the batch.
    const chosen = this.adapter.config.dropout > 0 ? counted : moved
    for (const plan of this.#plansOf(encoded, chosen)) {
      const batch = plan.examples.map((index) => encoded[index])
      const gradient = open.gradientFeed(
        plan.examples.map((i) => ({ logprobs: gradients[i], entropies: entropyGradients?.[i] })),
      )
      const feeds = { ...open.collate(batch, plan.sequence), ...temperatureFeed(temperature), ...gradient }
      const { outputs } = await this.inner.backward(feeds)
      const found = open.scoresOf(outputs, batch.map(countOf))
      for (const [j, index] of plan.examples.entries()) scores.set(index, found[j])
    }
    return scores
  }

  #plansOf(encoded: readonly EncodedExample[], indices: readonly number[] = [...encoded.keys()]): MicroBatch[] {
    const limit = this.run.encoding.maxLength
    const counted = indices.filter((i) => countOf(encoded[i]) > 0)
    if (counted.length === 0) throw new ConfigError({ where: 'examples', what: 'none has a token to learn from' })
    const lengths = counted.map((i) => encoded[i].inputIds.length)
    const plans = planEvaluation(lengths, { batchSize: rowsOfRun(this.run), limit })
    return plans.map(({ examples, sequence }) => ({ examples: examples.map((i) => counted[i]), sequence }))
  }

  get #hasLittleMemory(): boolean {
    return this.run.copiedBytes === 0
  }

  async #liveSession(): Promise<ModelSession<Model>> {
    const { inner, run, adapter, steps } = this
    // With little memory, the caches of texts take the place of what training keeps for its gradients.
    if (this.#hasLittleMemory) await inner.sessions.close()
    if (this.#sampler?.steps === steps) return this.#sampler.session
    await inner.writeFactors()
    if (this.#sampler === undefined) {
      const { device, threads, memory } = run.settings
      const session = await ModelSession.open(this.model, {
        ...{ device, threads, maxBatch: SAMPLED, memory: memory === 'fast' ? 'fast' : 'low' },
        ...(this.#hasLittleMemory && { prefixCache: SMALL_PREFIX_CACHE }),
        adapters: { [LIVE]: adapter },
      })
      this.#sampler = { session, steps }
      return session
    }
    const { session } = this.#sampler
    await session.remove(LIVE)
    await session.add(LIVE, adapter)
    this.#sampler.steps = steps
    return session
  }
}

function countOf({ targets }: EncodedExample): number {
  return targets.tokens.length
}

/** Puts the values of the targets at the places of their tokens, (n). */
function spread({ labels }: EncodedExample, values: Float32Array): Float32Array {
  const all = new Float32Array(labels.length)
  let next = 0
  for (let i = 1; i < labels.length; i++) if (labels[i] !== IGNORED) all[i] = values[next++]
  return all
}
