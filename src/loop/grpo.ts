// Training from rewards: the model writes several texts for each prompt, functions judge them, and what is better than
// its group becomes more probable.

import { ConfigError, DataError } from '../base/errors.js'
import { checkOptions, isObject } from '../base/options.js'
import { Random } from '../base/random.js'
import { readRows } from '../data/read-rows.js'
import { recordOfBase } from '../graph/base-record.js'
import type { Prompt } from '../infer/session.js'
import type { MessageOfParts } from '../text/chat.js'
import { fieldsOf } from '../text/records.js'
import type { TrainInput, TrainResult } from '../train/options.js'
import { endReward, judgeText, type Reward, type RewardInput } from '../train/rewards.js'
import { EpochPlan } from '../train/rows/batches.js'
import { checkRunFolder, type FolderUse, readMetrics } from '../train/saved/run-folder.js'
import { withRunPlace } from '../train/saved/run-place.js'
import { RunWriter } from '../train/saved/run-writer.js'
import { learningRates, resolveSettings, withDefaultRate } from '../train/settings.js'
import type { RunContext } from '../train/train.js'
import { Pace, peakRssBytes, type RewardMetrics, type StepMetrics, steadyMedian } from '../train/train-report.js'
import { GRPO_OPTIONS } from './gen/options.js'
import { advantagesOf, deviationOf, type GrpoOptions, grpoLoss, meanOf } from './grpo-loss.js'
import { Trainer } from './trainer.js'
import type { Sample } from './trainer-options.js'

/** Options of `train` that a run from rewards does not have. */
const REFUSED = ['evalData', 'evalSplit', 'evalEvery', 'earlyStopping', 'packing', 'sample', 'newHead'] as const

/** Rewards tell less than targets, so the learning rate is a part of the one for texts. */
const RATE_SHARE = 0.5

interface PromptRow extends Pick<RewardInput, 'messages' | 'answer' | 'row'> {
  readonly prompt: Prompt
  readonly text: string
}

/** Texts of one step's prompts, judged. */
interface Generation {
  readonly samples: readonly Sample[]
  readonly rewards: RewardMetrics
  readonly examples: readonly Sample[]
}

export async function trainOnRewards(given: TrainInput, context: RunContext): Promise<TrainResult> {
  const startedAt = performance.now()
  const { rewards = [], on = {}, signal, out, model } = given
  const options = { ...(given.taskOptions as GrpoOptions) }
  checkOptions(options, 'the task grpo', GRPO_OPTIONS)
  refuse(given, rewards)
  on.task?.('grpo')
  on.stage?.('encode')
  const rows = await promptsOf(given)
  const resolved = resolveSettings(given)
  const { numGenerations = 8, numIterations = 1 } = options
  const promptsPerStep = resolved.batchSize * resolved.gradientAccumulation
  const stepsPerEpoch = Math.ceil(rows.length / promptsPerStep) * numIterations
  const totalSteps = resolved.maxSteps ?? resolved.epochs * stepsPerEpoch
  on.stage?.('prepare')
  const use: FolderUse = given.resume ? 'resume' : given.overwrite ? 'overwrite' : 'new'
  if (out !== undefined) await checkRunFolder(out, use)
  const trainer = await Trainer.open(
    model,
    { ...given, batchSize: numGenerations, resume: use === 'resume' ? out : undefined },
    {
      limits: context.limits,
      about: { task: 'grpo', taskOptions: { ...options, promptsPerStep }, examples: rows, totalSteps },
    },
  )
  const run = async (writer: RunWriter | undefined, metrics: StepMetrics[]): Promise<TrainResult> => {
    const { seed } = trainer.adapter.config
    const layers = { widths: trainer.adapter.parts('linear').map(({ k }) => k), trainsBase: false }
    const settings = withDefaultRate(resolved, given, { rateShare: RATE_SHARE }, layers)
    const rateOf = learningRates(settings, totalSteps)
    const pace = new Pace()
    const times: number[] = []
    const loss = grpoLoss(options)
    const { temperature = 1, beta = 0 } = options
    let generation: Generation | undefined
    const save = async () => writer?.save(await trainer.save(), await trainer.stateParts())
    on.stage?.('train')
    try {
      while (metrics.length < totalSteps && !signal?.aborted) {
        const step = metrics.length
        const stepAt = performance.now()
        const iteration = step % numIterations
        const epoch = Math.floor(step / stepsPerEpoch)
        if (iteration === 0 || generation === undefined) {
          const plan = new EpochPlan(new Int32Array(rows.length), seed, epoch, {
            ...{ batchSize: promptsPerStep, accumulation: 1, limit: 0 },
          })
          const batch = plan.at(Math.floor((step % stepsPerEpoch) / numIterations)).flatMap(({ examples }) => examples)
          const drawSeed = new Random(seed, `texts/${step - iteration}`).uint32()
          generation = await generate(
            trainer,
            batch.map((index) => rows[index]),
            rewards,
            options,
            drawSeed,
          )
          if (beta !== 0) generation = await withReference(trainer, generation, temperature)
        }
        const { examples, samples } = generation
        const { loss: value, metrics: found } =
          iteration === 0
            ? await trainer.learnFromSamples(examples, loss, temperature)
            : await trainer.forwardBackward(examples, { loss, temperature })
        const learningRate = rateOf(step)
        const { gradientNorm } = await trainer.step({ learningRate })
        const elapsedMs = Math.round((performance.now() - stepAt) * 100) / 100
        const tokens = samples.reduce((sum, { ids }) => sum + ids.length, 0)
        const entry = { step: step + 1, epoch, loss: value, learningRate, gradientNorm, tokens, elapsedMs }
        metrics.push({ ...entry, rewards: { ...generation.rewards, ...found } })
        times.push(elapsedMs)
        await writer?.stepTaken()
        const secondsLeft = ((totalSteps - step - 1) * (steadyMedian(times.slice(-100)) ?? elapsedMs)) / 1000
        on.step?.({ ...metrics[step], totalSteps, ...pace.after(entry, samples.length), secondsLeft })
        const isDue = settings.saveEvery !== undefined && (step + 1) % settings.saveEvery === 0
        if (isDue && iteration === numIterations - 1) await save()
      }
    } catch (error) {
      // The state is that of the last whole step, from which a resumed run writes the same texts.
      if (metrics.length % numIterations === 0) await save()
      throw error
    }
    on.stage?.('save')
    await save()
    const isDone = metrics.length === totalSteps
    const adapter = await trainer.save()
    const texts = generation?.samples.slice(0, numGenerations) ?? []
    const [prompt = ''] = generation?.rewards.prompts ?? []
    const samples = [{ step: metrics.length, samples: texts.map(({ text }) => ({ prompt, text })) }]
    if (isDone) {
      const { keepState } = given
      await writer?.finish({ evaluations: [], samples }, await recordOfBase(model), { keepState: keepState ?? false })
    }
    return {
      adapter,
      report: {
        ...{ task: 'grpo', steps: metrics.length, tokens: metrics.reduce((sum, { tokens }) => sum + tokens, 0) },
        trainLoss: metrics.map(({ loss }) => loss),
        rewards: metrics.map((entry) => entry.rewards?.reward ?? Number.NaN),
        ...{
          keptStep: metrics.length,
          stoppedEarly: false,
          evalLoss: null,
          evalMetrics: null,
          evaluations: [],
          samples,
        },
        ...{ truncatedRecords: 0, skippedRecords: 0, newHead: null, labels: null, memory: null, interrupted: !isDone },
        ...{ trainableParams: adapter.totalTrainableParams(), totalParams: adapter.totalParams() },
        ...{ seconds: (performance.now() - startedAt) / 1000, stepMillis: steadyMedian(times) },
        ...{ peakRssBytes: peakRssBytes(), runtime: trainer.runtimeName },
      },
    }
  }
  try {
    if (out === undefined) return await run(undefined, [])
    return await withRunPlace({ directory: out, use }, async (place) => {
      const metrics = use === 'resume' ? await readMetrics(place.directory, trainer.steps) : []
      const writer = new RunWriter(place, { task: 'grpo' }, metrics)
      try {
        return await run(writer, metrics)
      } catch (error) {
        await writer.abandon().catch(() => {}) // `error` says why the run ended
        throw error
      }
    })
  } finally {
    for (const reward of rewards) endReward(reward)
    await trainer.dispose()
  }
}

/** Writes texts for prompts and has them judged. */
async function generate(
  trainer: Trainer,
  rows: readonly PromptRow[],
  rewards: readonly Reward[],
  options: GrpoOptions,
  seed: number,
): Promise<Generation> {
  const { numGenerations: n = 8, maxCompletionLength = 512, temperature = 1, topP = 1 } = options
  const { scaleRewards = 'group', maskTruncatedCompletions = false, rewardSeconds = 60 } = options
  const weights = rewards.map(({ name }) => options.rewardWeights?.[name] ?? 1)
  const prompts = rows.map(({ prompt }) => prompt)
  const groups = await trainer.sample(prompts, { n, maxNewTokens: maxCompletionLength, temperature, topP, seed })
  const judged = await Promise.all(
    groups.map((group, i) => {
      const { text: prompt, messages, answer, row } = rows[i]
      return Promise.all(
        group.map(({ text, ids, promptTokens }) => {
          const about = { prompt, messages, answer, text, tokens: ids.length - promptTokens, row }
          return judgeText(rewards, about, rewardSeconds)
        }),
      )
    }),
  )
  const sumOf = (values: readonly number[]) => {
    if (values.every(Number.isNaN)) return Number.NaN
    return values.reduce((sum, value, i) => sum + (Number.isNaN(value) ? 0 : weights[i] * value), 0)
  }
  const totals = judged.map((group) => group.map(sumOf))
  const advantages = advantagesOf(totals, scaleRewards).flat()
  const samples = groups.flat()
  const isCut = samples.map(({ finish }) => finish === 'max-new-tokens' || finish === 'context')
  // If every text were masked there would be nothing to run; without an advantage they change nothing either.
  const masks = maskTruncatedCompletions && !isCut.every(Boolean)
  const examples = samples.map((sample, i) => ({
    ...sample,
    advantages: maskTruncatedCompletions && isCut[i] ? 0 : advantages[i],
    ...(masks && isCut[i] && { weights: new Float32Array(sample.ids.length) }),
  }))
  const deviations = totals.map(deviationOf)
  const byFunction = rewards.map((reward, i) => {
    return [reward.name || `reward ${i + 1}`, meanOf(judged.flat().map((values) => values[i]))] as const
  })
  return {
    samples,
    examples,
    rewards: {
      reward: meanOf(totals.flat()),
      deviation: meanOf(deviations),
      byFunction: Object.fromEntries(byFunction),
      length: meanOf(samples.map(({ ids, promptTokens }) => ids.length - promptTokens)),
      cut: meanOf(isCut.map(Number)),
      withoutSignal: meanOf(deviations.map((deviation) => Number(!(deviation > 1e-8)))),
      distinct: new Set(samples.map(({ text }) => text)).size / samples.length,
      prompts: rows.map(({ text }) => text).slice(0, 1),
    },
  }
}

async function withReference(trainer: Trainer, generation: Generation, temperature: number): Promise<Generation> {
  const reference = await trainer.logprobs(generation.samples, { temperature, reference: true })
  return { ...generation, examples: generation.examples.map((example, i) => ({ ...example, reference: reference[i] })) }
}

function refuse(given: TrainInput, rewards: readonly Reward[]): void {
  const refused = REFUSED.find((name) => given[name] !== undefined && given[name] !== false)
  if (refused !== undefined) throw new ConfigError({ where: refused, what: 'not with the task grpo' })
  if (given.keep === 'best') throw new ConfigError({ where: 'keep', what: 'not with the task grpo', expected: 'last' })
  if (rewards.length > 0) return
  throw new ConfigError({
    where: 'rewards',
    what: 'missing: the task grpo learns from functions that judge texts',
    hint: 'Give functions, or the path of a module that exports them, as `rewards`',
  })
}

async function promptsOf({ data, columns }: TrainInput): Promise<PromptRow[]> {
  const rows: PromptRow[] = []
  for await (const { row, where } of readRows(data, { name: 'data', columns })) rows.push(promptOf(row, where))
  if (rows.length === 0) throw new DataError({ where: 'data', what: 'it holds no records' })
  return rows
}

/** A record with `prompt`, `question` or `messages`; an answer at the end of the messages is what is wanted. */
function promptOf(row: unknown, where: string): PromptRow {
  const record = isObject(row) ? row : {}
  const { messages, prompt = messages ?? record.question } = record
  const wanted = [record.answer, record.completion, record.solution].find((value) => typeof value === 'string')
  if (typeof prompt === 'string' && prompt !== '') {
    return { prompt, text: prompt, messages: undefined, answer: wanted as string | undefined, row: record }
  }
  const isChat = Array.isArray(prompt) && prompt.length > 0 && prompt.every(isObject)
  if (!isChat) {
    throw new DataError({
      where,
      what: 'no prompt to answer',
      expected: '"prompt" as a text or a list of messages, "question", or "messages"',
      got: fieldsOf(row),
    })
  }
  const all = prompt as unknown as MessageOfParts[]
  const isAnswered = all[all.length - 1].role === 'assistant'
  const asked = isAnswered ? all.slice(0, -1) : all
  const answer = wanted ?? (isAnswered ? all[all.length - 1].content : undefined)
  const text = String(asked[asked.length - 1]?.content ?? '')
  return { prompt: asked, text, messages: asked, answer: answer as string | undefined, row: record }
}
