// Trains the jobs of a folder on a base, and compares the results with the old models.

import { existsSync } from 'node:fs'
import { appendFile, readFile } from 'node:fs/promises'
import { freemem } from 'node:os'
import { checkJudge, type JudgeSettings } from '../../../api/export/measures.js'
import type { StepEvent, ToolProgress, TrainOptions, TrainReport } from '../../../api/index.js'
import { train } from '../../../api/node.js'
import { LowrankError, messageOf } from '../../../core/base/errors.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { createHandler } from '../../../serve/node/entry.js'
import { type Answer, type Answered, type Comparison, type Contestant, compare, sectionsOf } from '../compare.js'
import type { Moved } from '../manifest.js'
import { measuresOf } from '../measures.js'
import { baseThatFits, type GraderModels, planMove } from '../move-plan.js'
import { safeName, weightsOf } from '../plan.js'
import { lastUserText, type Prompt } from '../prompts.js'
import type { Item } from '../provider.js'
import { redact } from '../redact.js'
import { AT_ONCE, askHandler, inPool } from './client.js'
import { Folder } from './folder.js'
import { type JobPrompts, readJobs, unseenTraffic } from './jobs.js'
import { keyOf, RECORDED, type Recorded, sentOf } from './recorded.js'

export interface MoveOptions {
  /** The folder of an export. */
  readonly dir: string
  /** Bases to train on, each by itself. Default: one that fits the memory. */
  readonly bases?: readonly string[] | undefined
  readonly chatTemplate?: string | undefined
  /** Masks e-mail addresses, phone and card numbers in what is trained on. */
  readonly redact?: boolean | undefined
  /**
   * Trains on rows that a provider's model wrote too, and tries recorded answers as soft targets. Read the provider's
   * clause first.
   */
  readonly termsRead?: boolean | undefined
  /** What answers for the models that graders name. */
  readonly graderModels?: GraderModels | undefined
  /** A server with OpenAI's API, up to /v1, whose model `judgeModel` compares answers too. */
  readonly judge?: string | undefined
  readonly judgeModel?: string | undefined
  readonly judgeKey?: string | undefined
  /** The most tokens of an answer in the comparison. Default 512. */
  readonly maxTokens?: number | undefined
  /** What an hour of this machine costs, in dollars. */
  readonly dollarsPerHour?: number | undefined
  readonly threads?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Callbacks: steps of a job's training, and old answers compared with new ones, each with the job's id. */
  readonly on?: { step?(event: StepEvent, job: string): void; progress?(event: ToolProgress): void } | undefined
}

export interface MovedJob extends Moved {
  /** The key names the prompts and the measure of a comparison. */
  readonly comparisons: Readonly<Record<string, Comparison>>
}

const HOLD_OUT = 10
const SEEN = 'a tenth of the training file, which the old model has seen, so that only base and adapter are compared'
const WARNING =
  'This adapter has learned from your customers’ words, and can repeat them. Share it as you would share the chats.'

/**
 * Trains each job of the folder again, from the owner's own files and by the job's method, and compares. A job that is
 * done already is only compared, and one whose weights were taken home is not trained. Writes comparison.html.
 *
 * @throws what `train` throws for a base that cannot be trained. What is wrong with a single job is in its notes
 */
export async function moveJobs(options: MoveOptions): Promise<MovedJob[]> {
  const { dir, bases = [baseThatFits(process.availableMemory?.() ?? freemem())] } = options
  const judging = checkJudge(options.judge, options.judgeModel, options.judgeKey)
  return Folder.use(dir, async (folder) => {
    const jobs = await readJobs(folder)
    const results: MovedJob[] = []
    for (const base of bases) {
      for (const job of jobs) results.push(await new Mover(folder, base, job, options).run(judging))
    }
    await folder.write('comparison.json', `${JSON.stringify(results, null, 2)}\n`)
    const sections = results.flatMap(({ job, model, base, notes, comparisons }) => {
      const facts = [['job', job] as const, ...notes.map((note) => ['note', note] as const)]
      const compared = Object.entries(comparisons).flatMap(([title, comparison]) => sectionsOf(title, comparison))
      return [{ kind: 'facts' as const, title: `${model} on ${base}`, facts }, ...compared]
    })
    await folder.writePage('comparison.html', { title: 'Is it as good?', command: 'openai', sections })
    return results
  })
}

class Mover {
  readonly #place: string

  constructor(
    private readonly folder: Folder,
    private readonly base: string,
    private readonly from: JobPrompts,
    private readonly options: MoveOptions,
  ) {
    this.#place = `moved/${safeName(base)}/${safeName(from.job.id)}`
  }

  async run(judge: JudgeSettings | undefined): Promise<MovedJob> {
    const { job, prompts } = this.from
    const comparisons: Record<string, Comparison> = {}
    const { graderModels } = this.options
    const traffic = prompts['held-out'].length > 0 ? [] : unseenTraffic(this.from)
    const [training, tenth] =
      prompts['held-out'].length + traffic.length > 0 ? [prompts.training, []] : split(prompts.training)
    const [shown, title] =
      tenth.length > 0
        ? [tenth, SEEN]
        : traffic.length > 0
          ? [traffic, 'stored chats']
          : [prompts['held-out'], 'held-out prompts']
    const done = this.folder.manifest.moved.find(({ job: id, base }) => id === job.id && base === this.base)
    const moved = (await this.#taken()) ?? (done?.adapter ? done : await this.#train(training))
    if (moved.adapter === undefined || moved.isTaken || shown.length === 0) return { ...moved, comparisons }
    const answered = await this.#answer(shown, moved.adapter)
    const hasOld = title !== SEEN && answered.some(({ answers }) => answers.old !== undefined)
    for (const measure of measuresOf(job, shown, { isTraffic: traffic.length > 0, graderModels, judge })) {
      // Agreement with itself says nothing about the old model.
      const names: Contestant[] = hasOld && !measure.isAgainstOld ? ['old', 'base', 'new'] : ['base', 'new']
      comparisons[`${title}: ${measure.name}`] = await compare(answered, names, measure)
    }
    return { ...moved, comparisons }
  }

  /** The provider gave the job's own adapter, so that there is nothing to train. */
  async #taken(): Promise<Moved | undefined> {
    const { id, model } = this.from.job
    const place = weightsOf(id)
    if (!this.folder.has(`${place}/adapter_config.json`)) return undefined
    const config = jsonIn(await readFile(this.folder.at(`${place}/adapter_config.json`), 'utf8'))
    const base = String(isObject(config) ? config.base_model_name_or_path : undefined)
    const notes = [`the provider’s own adapter of ${base}, as it was taken home; it was not trained again`]
    return this.#save({ job: id, model, base, adapter: place, notes, isTaken: true })
  }

  async #train(training: readonly Prompt[]): Promise<Moved> {
    const { job, prompts } = this.from
    const { graderModels, chatTemplate, threads, signal, termsRead, on } = this.options
    const { task, rows, notes } = planMove(job, training, graderModels)
    const about = { job: job.id, model: job.model, base: this.base }
    if (task === undefined) return this.#save({ ...about, notes })
    // A loss needs answers; rewards do not.
    const measured = prompts['held-out'].filter(({ wanted }) => task !== 'causal-lm' || wanted !== undefined)
    const heldOut = measured.map(({ row }) => row)
    const said = [...notes]
    const options: Omit<TrainOptions, 'data'> = {
      ...{ model: this.base, task, chatTemplate, threads, signal, termsRead },
      ...(job.epochs !== undefined && { epochs: job.epochs }),
      ...(job.seed !== undefined && { config: { seed: job.seed } }),
      ...(task === 'grpo' && { rewards: [job.grader as never], graderModels }),
      ...(heldOut.length > 0 && { evalData: await this.#write('validation', heldOut) }),
      on: {
        step: (event) => on?.step?.(event, job.id),
        warning: (line) => void (line.includes('`logprobs`') && said.push(line)),
      },
    }
    const data = await this.#write('training', rows)
    try {
      const plain = await this.#run({ ...options, data }, this.#place)
      said.push(`${plain.steps} steps of ${task} on ${rows.length} rows of the owner’s file`)
      if (heldOut.length > 0) said.push(`measured on ${heldOut.length} of ${prompts['held-out'].length} held-out rows`)
      let adapter = this.#place
      const answers = termsRead && task === 'causal-lm' && heldOut.length > 0 ? await this.#recorded() : []
      if (answers.length > 0) {
        const place = `${adapter}.soft`
        const both = [data, await this.#write('recorded', answers)]
        const soft = await this.#run({ ...options, data: both }, place)
        const [before, after] = [plain, soft].map(({ evalLoss }) => evalLoss!.after)
        const isBetter = after < before
        const losses = `the validation loss is ${after.toFixed(4)} with them and ${before.toFixed(4)} without`
        const taken = `so the adapter that ${isBetter ? 'has' : 'has not'} learned them is taken`
        said.push(`${answers.length} recorded answers of the old model as soft targets: ${losses}, ${taken}`)
        if (isBetter) adapter = place
      }
      const lines = [`Takes the place of \`${job.model}\`.`, ...said, WARNING].map((line) => `- ${line}\n`)
      await appendFile(this.folder.at(`${adapter}/README.md`), `\n## Where it comes from\n\n${lines.join('')}`)
      return await this.#save({ ...about, adapter, notes: said })
    } catch (error) {
      const isOfJob = error instanceof LowrankError && ['DATA', 'CONFIG', 'UNSUPPORTED'].includes(error.code)
      if (signal?.aborted || !isOfJob) throw error
      return this.#save({ ...about, notes: [`not moved: ${messageOf(error)}`] })
    }
  }

  /** A run that was stopped goes on; one that cannot begins again. */
  async #run(options: TrainOptions, place: string): Promise<TrainReport> {
    const out = this.folder.at(place)
    const isThere = existsSync(out)
    const resumed = isThere ? await train({ ...options, out, resume: true }).catch(() => undefined) : undefined
    const { report } = resumed ?? (await train({ ...options, out, overwrite: isThere }))
    options.signal?.throwIfAborted()
    return report
  }

  /** The old model's whole answers with their log-probabilities, as rows, but none to a question that is held out. */
  async #recorded(): Promise<Item[]> {
    const { job, prompts } = this.from
    const heldOut = new Set(prompts['held-out'].map(({ request }) => lastUserText(request)))
    const asked = [...prompts.training, ...prompts.traffic].filter(({ request }) => !heldOut.has(lastUserText(request)))
    const byKey = new Map(asked.map(({ request }) => [keyOf(job.model, request), request]))
    const lines = (await this.folder.lines(RECORDED)) as unknown as Recorded[]
    return lines.flatMap(({ key, answer, finish, logprobs, source }) => {
      const request = byKey.get(key)
      if (request === undefined || finish !== 'stop' || !isObject(logprobs)) return []
      const { messages, tools } = request
      return [{ messages: [...messages, answer], ...(tools !== undefined && { tools }), logprobs, source }]
    })
  }

  async #write(name: string, rows: readonly Item[]): Promise<string> {
    const place = `moved/data/${safeName(this.from.job.id)}.${name}.jsonl`
    const shown = this.options.redact ? rows.map(redact) : rows
    await this.folder.write(place, shown.map((row) => `${JSON.stringify(row)}\n`).join(''))
    return this.folder.at(place)
  }

  async #save(moved: Moved): Promise<Moved> {
    const others = this.folder.manifest.moved.filter(({ job, base }) => job !== moved.job || base !== moved.base)
    await this.folder.save({ moved: [...others, moved] })
    return moved
  }

  /** Answers of all: the old ones as recorded, ours by the server that clients will ask. */
  async #answer(prompts: readonly Prompt[], adapter: string): Promise<Answered[]> {
    const { model, id } = this.from.job
    const { dollarsPerHour, signal, on } = this.options
    const recorded = (await this.folder.lines(RECORDED)) as unknown as Recorded[]
    const old = new Map(recorded.filter((line) => line.model === model).map((line) => [line.key, line]))
    const place = `${adapter}.answers.jsonl`
    const kept = (await this.folder.lines(place)) as unknown as (Answer & { key: string; name: Contestant })[]
    const ours = new Map(kept.map(({ key, name, ...answer }) => [`${name} ${key}`, answer as Answer]))
    const keyed = prompts.map((prompt) => ({ prompt, key: keyOf(model, prompt.request) }))
    const all = keyed.flatMap((asked) => (['base', 'new'] as const).map((name) => ({ ...asked, name })))
    const left = all.filter(({ key, name }) => !ours.has(`${name} ${key}`))
    const handler = left.length === 0 ? undefined : await this.#serve(adapter)
    let done = 0
    try {
      await inPool(left, async ({ prompt, key, name }) => {
        signal?.throwIfAborted()
        const startedAt = performance.now()
        const limits = { temperature: 0, max_completion_tokens: this.options.maxTokens ?? 512 }
        const body = { ...sentOf(prompt.request), model: name === 'new' ? model : 'the base', ...limits }
        const { answer: given } = await askHandler(handler!, body)
        if (given !== undefined) {
          const answer = { ...given, ms: performance.now() - startedAt }
          ours.set(`${name} ${key}`, answer)
          await this.folder.append(place, { key, name, ...answer })
        }
        on?.progress?.({ done: ++done, total: left.length, name: id })
      })
    } finally {
      await handler?.close()
    }
    const costly = (answer: Answer | undefined) => {
      // As many answers are written together as are asked for at once.
      const cost = answer && dollarsPerHour && (dollarsPerHour * answer.ms!) / 3_600_000 / AT_ONCE
      return answer && { ...answer, cost }
    }
    return keyed.map(({ prompt, key }) => {
      const [base, own] = ['base', 'new'].map((name) => costly(ours.get(`${name} ${key}`)))
      return { prompt, answers: { old: old.get(key), base, new: own } }
    })
  }

  #serve(adapter: string) {
    const { chatTemplate, threads } = this.options
    return createHandler({
      ...{ model: this.base, servedModelName: 'the base', chatTemplate },
      adapters: { [this.from.job.model]: this.folder.at(adapter) } as never,
      session: threads === undefined ? undefined : { threads },
    })
  }
}

/** The rows to train on, and a tenth of the prompts, none of whose questions is in a row that is trained on. */
function split(training: readonly Prompt[]): [Prompt[], Prompt[]] {
  const isOut = (i: number) => i % HOLD_OUT === HOLD_OUT - 1
  const kept = training.filter((_, i) => !isOut(i))
  const seen = new Set(kept.map(({ request }) => lastUserText(request)))
  return [kept, training.filter(({ request }, i) => isOut(i) && !seen.has(lastUserText(request)))]
}
