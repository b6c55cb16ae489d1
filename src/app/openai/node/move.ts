// Trains the jobs of a folder on a base, and compares the results with the old models.

import { existsSync } from 'node:fs'
import { appendFile } from 'node:fs/promises'
import { freemem } from 'node:os'
import type { GraderModel, StepEvent, ToolProgress } from '../../../api/index.js'
import { train } from '../../../api/node.js'
import { LowrankError, messageOf } from '../../../core/base/errors.js'
import { createHandler } from '../../../serve/node/entry.js'
import { inPool } from '../client.js'
import {
  AGREEMENT,
  type Answer,
  type Answered,
  type Comparison,
  type Contestant,
  compare,
  measureOf,
  sectionOf,
} from '../compare.js'
import type { Moved } from '../manifest.js'
import { baseThatFits, planMove, problemOf } from '../move-plan.js'
import { safeName } from '../plan.js'
import { lastUserText, type Message, type Prompt } from '../prompts.js'
import type { Item, Provider } from '../provider.js'
import { redact } from '../redact.js'
import { Folder } from './folder.js'
import { type JobPrompts, readJobs, unseenTraffic } from './jobs.js'
import { keyOf, RECORDED, type Recorded, sentOf } from './record.js'

export interface MoveOptions {
  /** The folder of an export. */
  readonly dir: string
  readonly provider: Provider
  /** Bases to train on, each by itself. Default: one that fits the memory. */
  readonly bases?: readonly string[] | undefined
  readonly chatTemplate?: string | undefined
  /** Masks e-mail addresses, phone and card numbers in what is trained on. */
  readonly redact?: boolean | undefined
  /** Trains on rows that a provider's model wrote too. Read the provider's clause first. */
  readonly termsRead?: boolean | undefined
  /** What answers for the models that graders name. */
  readonly graderModels?: Readonly<Record<string, GraderModel>> | undefined
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
  readonly comparisons: Readonly<Record<string, Comparison>>
}

const HOLD_OUT = 10
const WARNING =
  'This adapter has learned from your customers’ words, and can repeat them. Share it as you would share the chats.'

/**
 * Trains each job of the folder again, from the owner's own files and by the job's method, and compares. A job that is
 * done already is only compared. Writes comparison.html.
 *
 * @throws what `train` throws for a base that cannot be trained. What is wrong with a single job is in its notes
 */
export async function moveJobs(options: MoveOptions): Promise<MovedJob[]> {
  const { dir, provider, bases = [baseThatFits(process.availableMemory?.() ?? freemem())] } = options
  await (await Folder.open(dir)).close()
  const folder = await Folder.take(dir, provider.name)
  try {
    const jobs = await readJobs(folder, provider, await folder.lists())
    const results: MovedJob[] = []
    for (const base of bases) {
      for (const job of jobs) {
        const { moved, rest } = await new Mover(folder, base, job, options).run()
        results.push({ ...moved, comparisons: rest })
      }
    }
    await folder.write('comparison.json', `${JSON.stringify(results, null, 2)}\n`)
    await folder.writePage('comparison.html', {
      title: 'Is it as good?',
      command: 'openai',
      sections: results.flatMap(({ job, model, base, notes, comparisons }) => [
        {
          kind: 'facts' as const,
          title: `${model} on ${base}`,
          facts: [['job', job], ...notes.map((note) => ['note', note] as const)],
        },
        ...Object.entries(comparisons).flatMap(([title, comparison]) => sectionOf(title, comparison)),
      ]),
    })
    return results
  } finally {
    await folder.close()
  }
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

  async run(): Promise<{ moved: Moved; rest: Record<string, Comparison> }> {
    const { job } = this.from
    const { heldOut, training, title, sees } = this.#split()
    const done = this.folder.manifest.moved.find(
      (moved) => moved.job === job.id && moved.base === this.base && moved.adapter,
    )
    const moved = done ?? (await this.#train({ ...this.from, training }))
    if (moved.adapter === undefined) return { moved, rest: {} }
    const rest: Record<string, Comparison> = {}
    const answered = await this.#answer(heldOut, moved.adapter)
    const { graderModels = {}, dollarsPerHour } = this.options
    const hasOld = sees === 'nobody' && answered.some(({ answers }) => answers.old !== undefined)
    const contestants: Contestant[] = hasOld ? ['old', 'base', 'new'] : ['base', 'new']
    const grader = problemOf(job.grader, graderModels) === undefined ? job.grader : undefined
    const measure = title === 'stored chats' ? AGREEMENT : measureOf({ ...job, grader }, heldOut, graderModels)
    // Agreement with itself says nothing about the old model.
    const shown = measure === AGREEMENT ? (['base', 'new'] as const) : contestants
    if (heldOut.length > 0) rest[title] = await compare(answered, shown, measure, dollarsPerHour)
    return { moved, rest }
  }

  /** The prompts to compare on, and those that are left to train on. */
  #split(): { heldOut: readonly Prompt[]; training: readonly Prompt[]; title: string; sees: 'nobody' | 'old' } {
    const { heldOut, training } = this.from
    if (heldOut.length > 0) return { heldOut, training, title: 'held-out prompts', sees: 'nobody' }
    const traffic = unseenTraffic(this.from)
    if (traffic.length > 0) return { heldOut: traffic, training, title: 'stored chats', sees: 'nobody' }
    const kept = training.filter((_, i) => i % HOLD_OUT !== HOLD_OUT - 1)
    const seen = new Set(kept.map(({ request }) => lastUserText(request)))
    const split = training.filter((prompt) => !kept.includes(prompt) && !seen.has(lastUserText(prompt.request)))
    const title =
      'a tenth of the training file, which the old model has seen, so that only base and adapter are compared'
    return { heldOut: split, training: kept, title, sees: 'old' }
  }

  async #train(sources: JobPrompts): Promise<Moved> {
    const { job } = sources
    const { graderModels, chatTemplate, threads, signal, termsRead, provider } = this.options
    const planned = planMove({ ...sources, graderModels, termsRead, clause: provider.clause })
    const { id, model } = job
    if (planned.kind === 'not moved') return this.#note({ job: id, model, base: this.base, notes: planned.notes })
    const out = this.folder.at(this.#place)
    const options = {
      ...{ model: this.base, task: planned.task, epochs: job.epochs, chatTemplate, threads, signal },
      ...{ data: await this.#write('training', planned.rows), out },
      ...(job.seed !== undefined && { config: { seed: job.seed } }),
      ...(planned.task === 'grpo' && { rewards: [job.grader] as never, graderModels }),
      ...(planned.task !== 'grpo' && this.from.heldOut.length > 0 && { evalData: await this.#evaluationRows() }),
      on: { step: (event: StepEvent) => this.options.on?.step?.(event, id) },
    }
    try {
      // A run that was stopped goes on; one that cannot begins again.
      const first = existsSync(out) ? await train({ ...options, resume: true }).catch(() => undefined) : undefined
      const { report } = first ?? (await train({ ...options, overwrite: existsSync(out) }))
      signal?.throwIfAborted()
      const notes = [
        ...planned.notes,
        `${report.steps} steps of ${planned.task} on ${planned.rows.length} rows of the owner’s file`,
      ]
      await appendFile(`${out}/README.md`, cardOf(job.model, notes))
      return this.#note({ job: id, model, base: this.base, adapter: this.#place, notes })
    } catch (error) {
      if (
        signal?.aborted ||
        !(error instanceof LowrankError) ||
        !['DATA', 'CONFIG', 'UNSUPPORTED'].includes(error.code)
      )
        throw error
      return this.#note({ job: id, model, base: this.base, notes: [`not moved: ${messageOf(error)}`] })
    }
  }

  #evaluationRows(): Promise<string> {
    return this.#write(
      'validation',
      this.from.heldOut.map(({ row }) => row),
    )
  }

  async #write(name: string, rows: readonly Item[]): Promise<string> {
    const place = `moved/data/${safeName(this.from.job.id)}.${name}.jsonl`
    const shown = this.options.redact ? rows.map(redact) : rows
    await this.folder.write(place, shown.map((row) => `${JSON.stringify(row)}\n`).join(''))
    return this.folder.at(place)
  }

  async #note(moved: Moved): Promise<Moved> {
    const others = this.folder.manifest.moved.filter(({ job, base }) => job !== moved.job || base !== moved.base)
    await this.folder.save({ moved: [...others, moved] })
    return moved
  }

  /** Answers of all: the old ones as recorded, ours by the server that clients will ask. */
  async #answer(prompts: readonly Prompt[], adapter: string): Promise<Answered[]> {
    const { model } = this.from.job
    const cache = `${adapter}.answers.jsonl`
    const ours = new Map<string, Answer>()
    for (const { key, name, ...answer } of (await this.folder.lines(cache)) as unknown as (Answer & {
      key: string
      name: string
    })[])
      ours.set(`${name} ${key}`, answer)
    const recorded = ((await this.folder.lines(RECORDED)) as unknown as Recorded[]).filter(
      (line) => line.model === model,
    )
    const old = new Map(recorded.map((line) => [line.key, line]))
    const keyed = prompts.map((prompt) => ({ prompt, key: keyOf(model, prompt.request) }))
    const left = keyed.flatMap(({ prompt, key }) =>
      (['base', 'new'] as const).filter((name) => !ours.has(`${name} ${key}`)).map((name) => ({ prompt, key, name })),
    )
    if (left.length > 0) {
      const { chatTemplate, threads, maxTokens = 512, on } = this.options
      const session = threads === undefined ? undefined : { threads }
      const adapters = { [model]: this.folder.at(adapter) }
      const handler = await createHandler({
        model: this.base,
        adapters: adapters as never,
        servedModelName: 'the base',
        chatTemplate,
        session,
      })
      let done = 0
      try {
        await inPool(left, async ({ prompt, key, name }) => {
          this.options.signal?.throwIfAborted()
          const body = {
            ...sentOf(prompt.request),
            model: name === 'new' ? model : 'the base',
            temperature: 0,
            max_completion_tokens: maxTokens,
          }
          const answer = await askHandler(handler, body)
          if (answer !== undefined) {
            ours.set(`${name} ${key}`, answer)
            await this.folder.append(cache, { key, name, ...answer })
          }
          on?.progress?.({ done: ++done, total: left.length, name: this.from.job.id })
        })
      } finally {
        await handler.close()
      }
    }
    return keyed.map(({ prompt, key }) => ({
      prompt,
      answers: { old: old.get(key), base: ours.get(`base ${key}`), new: ours.get(`new ${key}`) },
    }))
  }
}

/** Asks our own server; undefined if it refuses the request. */
export async function askHandler(
  handler: (request: Request) => Promise<Response>,
  body: object,
): Promise<Answer | undefined> {
  const startedAt = performance.now()
  const response = await handler(
    new Request('http://localhost/v1/chat/completions', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    }),
  )
  const { choices } = (await response.json()) as { choices?: { message: Message; finish_reason: string }[] }
  if (!response.ok || choices === undefined) return undefined
  return { answer: choices[0].message, finish: choices[0].finish_reason, ms: performance.now() - startedAt }
}

function cardOf(model: string, notes: readonly string[]): string {
  const lines = [`Takes the place of \`${model}\`.`, ...notes, WARNING].map((line) => `- ${line}`)
  return `\n## Where it comes from\n\n${lines.join('\n')}\n`
}
