// Lessons from a teacher, on the student's own texts.

import { MismatchError, RuntimeError } from '../../core/base/errors.js'
import { postJson } from '../../core/base/post-json.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { roundUp } from '../../model/inputs/token-batch.js'
import { type Model, requireTokenizer } from '../../model/model-folder.js'
import { type Example, IGNORED } from '../../model/text/records.js'
import { readGraph } from '../../onnx/view/graph.js'
import { checkTrainableForm } from '../graph/trainable-form.js'
import { Learner } from '../learner.js'
import { batchOf, planEvaluation } from '../rows/batches.js'
import type { Lessons, Run } from '../run.js'
import { resolveSettings } from '../settings.js'
import type { TeacherServer } from '../tasks/task.js'
import { type DistilledTokens, TeacherTokens } from './distilled-tokens.js'
import type { LossFunction } from './losses.js'
import type { PromptRow } from './prompt-rows.js'
import { promptLessons, type Written } from './prompts.js'
import { Trainer } from './trainer.js'
import type { Sample } from './trainer-options.js'

/** Settings of `train` with the task `distill`, with the names and defaults of TRL's DistillationConfig. */
export interface DistillOptions {
  /**
   * Which divergence: 0 is the forward KL, KL(teacher ‖ student), 1 the reverse KL, and a number in between the
   * divergence of Jensen and Shannon. With a server as teacher it must be 1.
   * @range a number in [0, 1]
   * @default 1
   */
  readonly beta?: number | undefined
  /**
   * The temperature of sampling and of both distributions. With a server as teacher it must be 1.
   * @range a finite number above 0
   * @default 1
   */
  readonly temperature?: number | undefined
  /**
   * Most tokens of a text.
   * @range an integer of at least 1
   * @default 512
   */
  readonly maxCompletionLength?: number | undefined
  /**
   * Samples from the fewest likely tokens whose probabilities sum to this.
   * @range a number in (0, 1]
   * @default 1
   */
  readonly topP?: number | undefined
  /**
   * Samples from this many of the likeliest tokens. 0 samples from all.
   * @range an integer of at least 0
   * @default 0
   */
  readonly topK?: number | undefined
  /** The name of the teacher, if it is a server. */
  readonly teacherModel?: string | undefined
  /** The API key of the teacher, if it is a server that asks for one. */
  readonly teacherKey?: string | undefined
}

export async function teacherLessons(run: Run, learner: Learner): Promise<Lessons> {
  const { model, settings, options: given } = run
  const options: DistillOptions = given.taskOptions ?? {}
  const { temperature = 1, maxCompletionLength = 512, topP = 1, topK = 0 } = options
  const limits = { maxNewTokens: maxCompletionLength, temperature, topP, topK: topK || Number.POSITIVE_INFINITY }
  const teacher = given.teacher!
  const trainer = new Trainer(learner, run)
  const write = async (_: Trainer, rows: readonly PromptRow[], seed: number, given = limits): Promise<Written> => {
    const prompts = rows.map(({ prompt }) => prompt)
    return { samples: (await trainer.sample(prompts, { ...given, seed })).flat() }
  }
  const each = { textsPerPrompt: 1, iterations: 1 }
  const measuredBy = (agreed: (samples: readonly Sample[]) => Promise<readonly Agreed[]>) => ({
    measure: async (trainer: Trainer, rows: readonly PromptRow[]) => {
      const { samples } = await write(trainer, rows, 0, { ...limits, temperature: 0 })
      return (await agreed(samples)).map(agreementOf)
    },
  })
  if ('url' in teacher) {
    const server = await openServer(teacher, options, model)
    return promptLessons<Written>(run, trainer, {
      ...each,
      ...measuredBy((samples) => Promise.all(samples.map((sample) => server.agreed(sample)))),
      async write(...given) {
        const { samples } = await write(...given)
        const reference = await Promise.all(samples.map(({ ids }) => server.logprobs(ids)))
        return { samples: samples.map((sample, i) => ({ ...sample, reference: reference[i] })) }
      },
      learn: (_, { samples }) => trainer.learnFromSamples(samples, sampledDivergence, temperature),
    })
  }
  const { batchSize, threads } = settings
  const local = await openTeacher(teacher, model, { temperature, batchSize, threads })
  const open = run.open as unknown as DistilledTokens
  open.teach = local.teach
  const plansOf = (examples: readonly Example[]) => {
    const limit = model.contextLength ?? Number.POSITIVE_INFINITY
    return planEvaluation(
      examples.map(({ inputIds }) => inputIds.length),
      { batchSize, limit },
    )
  }
  return promptLessons<Written>(run, trainer, {
    ...each,
    ...measuredBy(async (samples) => {
      const examples = samples.map(exampleOf)
      const agreed: Agreed[] = []
      for (const { examples: indices } of plansOf(examples)) {
        const asked = indices.map((index) => examples[index])
        const found = agreedIn(await local.teach(asked), asked)
        for (const [i, index] of indices.entries()) agreed[index] = found[i]
      }
      return agreed
    }),
    write,
    async learn(_, { samples }) {
      const examples = samples.map(exampleOf)
      return { loss: await learner.forwardBackward(plansOf(examples).map((plan) => batchOf(examples, plan))) }
    },
    close: local.close,
  })
}

/** For each token of a text: would the teacher have written it too? undefined if it does not tell. */
type Agreed = readonly (boolean | undefined)[]

function agreementOf(tokens: Agreed) {
  const told = tokens.filter((token) => token !== undefined)
  const agreement = told.filter(Boolean).length / told.length
  return { agreement, loss: 1 - agreement }
}

/** @param all ln(probability) of each token of the vocabulary at the targets of the examples, (m, V) */
function agreedIn(all: Float32Array, examples: readonly Example[]): Agreed[] {
  const targets = examples.map(({ labels }) => labels.subarray(1).filter((label) => label !== IGNORED))
  const width = all.length / targets.reduce((sum, { length }) => sum + length, 0)
  let row = 0
  return targets.map((ids) => {
    return Array.from(ids, (id) => {
      const values = all.subarray(row * width, ++row * width)
      return values[id] >= values.reduce((a, b) => Math.max(a, b))
    })
  })
}

function exampleOf({ ids, weights }: Pick<Sample, 'ids' | 'weights'>): Example {
  return { inputIds: ids, labels: ids.map((id, i) => (weights[i] === 0 ? IGNORED : id)) }
}

/** Opens a local teacher. It scores each batch just before the student learns from it. */
export async function openTeacher(
  teacher: Model,
  student: Model,
  { temperature, ...given }: { temperature: number; batchSize?: number | undefined; threads?: number | undefined },
) {
  checkTrainableForm(readGraph(teacher.onnx))
  checkTokenizers(teacher, student)
  const open = new TeacherTokens(teacher, temperature)
  const adapter = new LoraAdapter({ targetModules: [] })
  const settings = resolveSettings(given)
  const trainer = await Learner.open({ model: teacher, open, adapter, modules: undefined, settings }, false)
  await trainer.start()
  return {
    async teach(examples: readonly Example[]): Promise<Float32Array> {
      const length = roundUp(Math.max(...examples.map(({ inputIds }) => inputIds.length)))
      const { outputs } = await trainer.forward({ examples, length })
      const { loss: _, ...predicted } = outputs
      return Object.values(predicted)[0].data as Float32Array
    },
    close: () => trainer.close(),
  }
}

const PROBED = 64
const PROBE = 'The quick brown fox jumps over 12345 lazy dogs, déjà vu: f(x) = {"key": [1, 2]}\n\tEnd. 日本語 🙂'

function checkTokenizers(teacher: Model, student: Model): void {
  const sizes = [student.vocabularySize, teacher.vocabularySize]
  const [ours, theirs] = [student, teacher].map((model) => {
    const tokenizer = requireTokenizer(model)
    const { tokens } = tokenizer.vocabulary(model.vocabularySize ?? 0) ?? {}
    return JSON.stringify([tokenizer.encode(PROBE), tokens])
  })
  if (ours === theirs && sizes[0] === sizes[1]) return
  throw otherTokenizer(teacher.directory.name, student, sizes[0] === sizes[1] ? undefined : sizes.join(' and '))
}

function otherTokenizer(teacher: string, student: Model, got?: string): MismatchError {
  return new MismatchError({
    where: 'teacher',
    what: `${teacher} has another tokenizer than ${student.directory.name}, so its probabilities are of other tokens`,
    ...(got !== undefined && { expected: 'equal numbers of tokens', got }),
    hint: 'Take a teacher of the same family, or train on texts that it has written',
  })
}

/**
 * For each token, KL(student ‖ teacher) over two outcomes: the sampled token, and any other. This is TRL's
 * `loss_top_k=1` with `loss_add_tail`. `reference` holds the teacher's log-probabilities.
 */
export const sampledDivergence: LossFunction = (rows) => {
  const count = rows.reduce((sum, { logprobs }) => sum + logprobs.length, 0)
  let loss = 0
  const gradients = rows.map(({ logprobs, reference }) => {
    return logprobs.map((logprob, i) => {
      const [student, teacher] = [Math.min(logprob, MOST), Math.min(reference![i], MOST)]
      const p = Math.exp(student)
      const [rest, restOfTeacher] = [Math.log(-Math.expm1(student)), Math.log(-Math.expm1(teacher))]
      loss += (p * (student - teacher) + (1 - p) * (rest - restOfTeacher)) / count
      return logprob > MOST ? 0 : (p * (student - teacher - rest + restOfTeacher)) / count
    })
  })
  return { loss, gradients }
}

/** The largest log-probability of a token: like TRL, keep a little probability for all others. */
const MOST = -1e-7

async function openServer({ url }: TeacherServer, options: DistillOptions, student: Model) {
  const { teacherModel: model, teacherKey: key } = options
  const scoresOf = async (prompt: readonly number[]) => {
    const body = { model, prompt, max_tokens: 0, echo: true, logprobs: 1 }
    const answer = await postJson(`${url}/completions`, body, { key, what: 'the teacher does not answer' })
    const { choices } = answer as {
      choices?: {
        logprobs?: {
          tokens: string[]
          token_logprobs: (number | null)[]
          top_logprobs?: (Record<string, number> | null)[] | null
        } | null
      }[]
    }
    const logprobs = choices?.[0]?.logprobs
    if (Array.isArray(logprobs?.tokens) && Array.isArray(logprobs.token_logprobs)) return logprobs
    throw new RuntimeError({
      where: url,
      what: 'the teacher gives no log-probabilities of a prompt',
      expected: 'a server that knows `echo` with `logprobs`, such as lowrank serve or vLLM',
    })
  }
  const tokenizer = requireTokenizer(student)
  const { vocabularySize = 0 } = student
  // Send token ids, of a text and from all over the vocabulary, and compare the tokens that the server names. Servers
  // spell special tokens and parts of characters in their own ways, so only plain tokens are compared.
  const others = Array.from({ length: PROBED }, (_, i) => Math.floor((i * vocabularySize) / PROBED))
  const texts = [...tokenizer.encode(PROBE), ...others].map((id) => ({ id, text: tokenizer.decode([id]) }))
  const plain = texts.filter(({ text }) => /^[\x20-\x7e]+$/.test(text))
  const { tokens } = await scoresOf(plain.map(({ id }) => id))
  if (tokens.length !== plain.length || !plain.every(({ text }, i) => text === tokens[i])) {
    throw otherTokenizer(`${model} at ${url}`, student)
  }
  const scoresOfAll = async (ids: ArrayLike<number>) => {
    const scores = await scoresOf(Array.from(ids))
    if (scores.token_logprobs.length === ids.length) return scores
    throw otherTokenizer(`${model} at ${url}`, student)
  }
  return {
    async logprobs(ids: ArrayLike<number>): Promise<Float32Array> {
      return Float32Array.from((await scoresOfAll(ids)).token_logprobs, (value) => value ?? 0)
    },
    async agreed({ ids, weights }: Sample): Promise<Agreed> {
      const { token_logprobs: found, top_logprobs } = await scoresOfAll(ids)
      const places = [...weights.keys()].filter((i) => weights[i] !== 0)
      return places.map((i) => {
        const top = Object.values(top_logprobs?.[i] ?? {})
        return top.length === 0 ? undefined : (found[i] ?? 0) >= Math.max(...top)
      })
    },
  }
}
