// A trainer for loops of your own: gradients of any loss, steps of AdamW, and texts that the current factors write. The
// graphs of training and of sampling read the base's weights from one mapped file.

import type { Directory, Target } from '../../core/base/bytes.js'
import { ConfigError, NumericError, StateError } from '../../core/base/errors.js'
import { checkOptions } from '../../core/base/options.js'
import { Turns } from '../../core/base/turns.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { saveAdapter } from '../../lora/peft/adapter-folder.js'
import { recordOfBase } from '../../model/base-record.js'
import { chooseCopies, type MemoryLimit, trainingMemory } from '../../model/memory.js'
import type { Model } from '../../model/model-folder.js'
import { type Example, IGNORED } from '../../model/text/records.js'
import { sampleTexts, type TextSession } from '../../run/generate/generate.js'
import { ModelSession } from '../../run/model-session.js'
import type { Prompt } from '../../run/session.js'
import { checkParts, checkOptions as checkTrainOptions } from '../check-options.js'
import { readParameters } from '../engine/parameters.js'
import { copiesOf } from '../engine/sessions.js'
import { Learner } from '../learner.js'
import { newAdapter } from '../new-adapter.js'
import type { TrainInput } from '../options.js'
import { type MicroBatch, planEvaluation } from '../rows/batches.js'
import { encodeContext } from '../rows/examples.js'
import { checkFingerprint, fingerprintOf } from '../saved/fingerprint.js'
import { type RunState, readState, writeState } from '../saved/run-folder.js'
import { resolveSettings } from '../settings.js'
import { causalLm } from '../tasks/causal-lm.js'
import type { EncodeContext, OpenTask } from '../tasks/task.js'
import { ScoredTokens, type TokenScores, temperatureFeed } from '../tasks/token-scores.js'
import { checkLayers } from '../train.js'
import { type EncodedExample, encodeExamples, type TrainerExample } from './examples.js'
import { FORWARD_BACKWARD_OPTIONS, SAMPLE_OPTIONS, STEP_OPTIONS } from './gen/options.js'
import { checkDerivatives, checkResult, type LossFunction, type LossResult, type LossRow, namedLoss } from './losses.js'
import type {
  ForwardBackwardOptions,
  ForwardBackwardResult,
  Sample,
  SampleOptions,
  StepOptions,
  StepReport,
  TrainerOptions,
} from './trainer-options.js'

/** The options, with adapter and state opened. */
export interface TrainerInput extends Omit<TrainerOptions, 'dtype' | 'adapter' | 'resume'> {
  readonly adapter?: LoraAdapter | undefined
  readonly resume?: Directory | undefined
}

/** The caller of `open` gives the memory limits and folders of its platform, and may replace the task. */
interface Surroundings {
  readonly limits?: readonly MemoryLimit[]
  readonly closesModel?: boolean
  /** Trains another task than log-probabilities of tokens. Then only `sample`, `save` and `inner` can be used. */
  readonly task?: OpenTask<Example> | undefined
  readonly openTarget?: (target: Target, where: string) => Directory
}

const LIVE = 'live'
/** Texts that are sampled at the same time. */
const SAMPLED = 32
const USUAL_LENGTH = 1024
/** With little memory, the session keeps at most this many bytes of caches for texts whose next turns may come. */
const SMALL_PREFIX_CACHE = 2 ** 26

interface Parts extends Pick<TrainerInput, 'chatTemplate' | 'chatTemplateArgs'> {
  readonly open: ScoredTokens
  readonly context: EncodeContext
  readonly fingerprint: Record<string, string>
  readonly closesModel: boolean
  readonly openTarget: NonNullable<Surroundings['openTarget']>
}

/** A model with an adapter that learns. {@link openTrainer} opens it. Calls run one after the other. */
export class Trainer {
  readonly #turns = new Turns()
  /** The factors that training began with: those of the reference. */
  readonly #start: readonly Float32Array[]
  #loss: number | undefined
  #sampler: { readonly session: ModelSession<Model>; steps: number } | undefined
  #disposal: Promise<void> | undefined

  /** @internal */
  readonly inner: Learner

  private constructor(
    inner: Learner,
    private readonly parts: Parts,
  ) {
    this.inner = inner
    this.#start = readParameters(inner.parts.adapter, inner.names)
  }

  /** @internal */
  static async open(model: Model, options: TrainerInput, around: Surroundings = {}): Promise<Trainer> {
    const { closesModel = false, openTarget = (target) => target as Directory } = around
    const { inner: parts, open, context } = await prepareTrainer(model, options, around)
    await Learner.check(parts.model, parts.settings)
    const inner = await Learner.open(parts)
    try {
      const about = { task: 'trainer', taskOptions: undefined, examples: [], evalExamples: undefined, totalSteps: 0 }
      const fingerprint = await fingerprintOf({ ...parts, ...about })
      const { resume, chatTemplate, chatTemplateArgs } = options
      const check = (run: RunState) => checkFingerprint(run.fingerprint, fingerprint, resume!.name, false)
      const state = resume && (await readState(resume, inner.names, check))
      await inner.start(state?.engine, state?.run.step)
      const opened = { open, context, fingerprint, closesModel, openTarget }
      return new Trainer(inner, { ...opened, chatTemplate, chatTemplateArgs })
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
    return this.inner.parts.adapter
  }

  /** The model that learns. Do not close it before the trainer. */
  get model(): Model {
    return this.inner.parts.model
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
      const encoded = await this.#encode(examples, loss === 'dpo' ? loss : causalLm.name)
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
      return this.#pass(await this.#encode(examples, causalLm.name), loss, { temperature, isKnown: true })
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
      const encoded = await this.#encode(examples, causalLm.name)
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
      const { chatTemplate, chatTemplateArgs } = this.parts
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
   */
  save(out?: Target): Promise<LoraAdapter> {
    return this.#take(async () => {
      const { adapter, model } = this
      const folder = out === undefined ? undefined : this.parts.openTarget(out, 'out')
      await this.inner.writeFactors()
      adapter.trainedOn = await recordOfBase(model)
      if (folder !== undefined) await saveAdapter(adapter, folder)
      return adapter
    })
  }

  /** Writes the adapter and all that `resume` needs. Gradients since the last step are not saved. */
  saveState(out: Target): Promise<void> {
    return this.#take(async () => {
      const { inner, parts, steps: step } = this
      const folder = parts.openTarget(out, 'out')
      const run = { step, fingerprint: parts.fingerprint, evaluations: [], samples: [] }
      await writeState(folder, inner.names, await inner.engine.state(), run)
      await inner.writeFactors()
      await saveAdapter(this.adapter, folder)
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
      if (this.parts.closesModel) await this.model.close()
    }
  }

  #take<T>(work: () => Promise<T>): Promise<T> {
    return this.#turns.take(async () => {
      if (this.#disposal !== undefined) throw new StateError({ where: 'trainer', what: 'it is disposed' })
      return work()
    })
  }

  async #encode(examples: readonly TrainerExample[], taskName: string): Promise<EncodedExample[]> {
    if (this.#hasLittleMemory) {
      // ONNX Runtime keeps the memory of a session's runs as long as the session is open.
      await this.#sampler?.session.dispose()
      this.#sampler = undefined
    } else await this.#sampler?.session.engine.forgetPrefixes()
    return encodeExamples(examples, taskName, this.parts.context)
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
    const { open } = this.parts
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
    const { open } = this.parts
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
    const { batchSize } = this.inner.parts.settings
    const limit = this.parts.context.maxLength
    const counted = indices.filter((i) => countOf(encoded[i]) > 0)
    if (counted.length === 0) throw new ConfigError({ where: 'examples', what: 'none has a token to learn from' })
    const lengths = counted.map((i) => encoded[i].inputIds.length)
    const plans = planEvaluation(lengths, { batchSize, limit })
    return plans.map(({ examples, sequence }) => ({ examples: examples.map((i) => counted[i]), sequence }))
  }

  get #hasLittleMemory(): boolean {
    return this.inner.parts.copiedBytes === 0
  }

  async #liveSession(): Promise<ModelSession<Model>> {
    const { inner, adapter, steps } = this
    // With little memory, the caches of texts take the place of what training keeps for its gradients.
    if (this.#hasLittleMemory) await inner.sessions.close()
    if (this.#sampler?.steps === steps) return this.#sampler.session
    await inner.writeFactors()
    if (this.#sampler === undefined) {
      const { device, threads, memory } = inner.parts.settings
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

/** All that a trainer begins with but the engine: the adapter, the settings, and how examples are read. */
export async function prepareTrainer(
  model: Model,
  options: TrainerInput,
  { limits = [], task }: Pick<Surroundings, 'limits' | 'task'> = {},
) {
  const input: TrainInput = { ...options, model, data: [], resume: undefined }
  const resolved = resolveSettings(options)
  const config = checkTrainOptions(input, resolved)
  // Evaluations and steps take turns. TrainingSessions keeps the sessions of both open if `evalEvery` has a value.
  const settings = { ...resolved, evalEvery: 1 }
  causalLm.check(model)
  const targets = await checkLayers(input, config)
  const open = new ScoredTokens(model, options.entropy ?? false)
  const { modules } = options
  const adapter = options.adapter ?? (await newAdapter(model, targets!, { ...input, task: causalLm, open }))
  await checkParts(adapter, { model, open, modules })
  const context = await encodeContext(input)
  const longest = Math.min(context.maxLength, options.maxLength ?? USUAL_LENGTH)
  const need = trainingMemory(model, { batch: settings.batchSize, sequence: longest, lowMemory: false })
  const copiedBytes = settings.memory === 'auto' ? chooseCopies(need, limits) : copiesOf(settings.memory)
  return { inner: { model, open: task ?? open, adapter, modules, settings, copiedBytes, longest }, open, context }
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
