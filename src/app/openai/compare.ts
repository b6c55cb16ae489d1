// "Is it as good?": scores of the old model, the new adapter and its base on the same prompts, with intervals.

import { bootstrap, type Interval, openGrader } from '../../api/export/measures.js'
import type { GraderModel } from '../../api/index.js'
import type { Cell, Section } from '../../api/report/page.js'
import { isObject, jsonIn } from '../../core/base/options.js'
import { callsIn, type Message, type Prompt, textOfMessage } from './prompts.js'
import type { Job } from './provider.js'

/** Below this number of prompts there is no verdict. */
export const LEAST_PROMPTS = 200
/** A loss of at most this much counts as good enough. */
const MARGIN = 0.02
/** The difference that the named number of prompts would show. */
const SHOWN_DIFFERENCE = 0.05

export interface Answer {
  readonly answer: Message
  readonly finish: string
  readonly ms?: number | undefined
  /** Dollars. */
  readonly cost?: number | undefined
}

export type Contestant = 'old' | 'base' | 'new'

/** A prompt with the answers to it, by who gave them. */
export interface Answered {
  readonly prompt: Prompt
  readonly answers: Readonly<Partial<Record<Contestant, Answer>>>
}

export interface Measure {
  readonly name: string
  /** 0 is worst. null: it cannot tell. */
  score(prompt: Prompt, answer: Message): Promise<number | null> | number | null
}

/** The job's own grader, or what fits its answers. */
export function measureOf(
  job: Job,
  prompts: readonly Prompt[],
  models: Readonly<Record<string, GraderModel>>,
): Measure {
  if (job.grader !== undefined) {
    const grade = openGrader(job.grader, models)
    return {
      name: `the job’s grader ${String(job.grader.name ?? '')}`.trim(),
      score: ({ row }, answer) => grade({ item: row, text: textOfMessage(answer) }),
    }
  }
  const isCalls = prompts.every(({ wanted }) => callsOf(wanted).length > 0)
  return {
    name: isCalls ? 'right calls' : 'exact match',
    score: ({ wanted }, answer) => Number(isSame(wanted, answer)),
  }
}

/** For traffic, which has no right answer. */
export const AGREEMENT: Measure = {
  name: 'agreement with the old answer',
  score: ({ wanted }, answer) => Number(isSame(wanted, answer)),
}

const callsOf = (message: Message | undefined) => (Array.isArray(message?.tool_calls) ? message.tool_calls : [])

function isSame(wanted: Message | undefined, given: Message): boolean {
  if (wanted === undefined) return false
  const [a, b] = [wanted, given].map((message) => callsOf(message))
  if (a.length > 0 || b.length > 0) return JSON.stringify(callsIn(a)) === JSON.stringify(callsIn(b))
  return textOfMessage(wanted).trim() === textOfMessage(given).trim()
}

/** True if the answer is JSON that fits the request's schema; undefined for a request without one. */
export function fitsSchema({ request }: Prompt, answer: Message): boolean | undefined {
  const { response_format: format } = request
  if (!isObject(format) || format.type === 'text') return undefined
  const value = jsonIn(textOfMessage(answer))
  const { json_schema: named } = format
  return isObject(named) ? fits(value, named.schema) : isObject(value)
}

/** The part of JSON Schema that strict response formats have, without patterns and limits. */
function fits(value: unknown, schema: unknown): boolean {
  if (!isObject(schema)) return true
  const { type, enum: words, properties, required, items, additionalProperties, anyOf } = schema
  if (Array.isArray(anyOf)) return anyOf.some((option) => fits(value, option))
  if (Array.isArray(words)) return words.includes(value)
  const types = {
    string: typeof value === 'string',
    number: typeof value === 'number',
    integer: Number.isInteger(value),
  }
  const others = {
    boolean: typeof value === 'boolean',
    null: value === null,
    array: Array.isArray(value),
    object: isObject(value),
  }
  const isType = [type ?? []].flat().some((name) => ({ ...types, ...others })[name as 'string'])
  if (type !== undefined && !isType) return false
  if (Array.isArray(value)) return value.every((item) => fits(item, items))
  if (!isObject(value)) return true
  const known = isObject(properties) ? properties : {}
  const isWhole = !Array.isArray(required) || required.every((name) => Object.hasOwn(value, String(name)))
  const isClosed = additionalProperties !== false || Object.keys(value).every((name) => Object.hasOwn(known, name))
  return isWhole && isClosed && Object.entries(value).every(([name, member]) => fits(member, known[name]))
}

export interface Row {
  readonly name: Contestant
  readonly score: Interval
  /** The score minus that of the first row, paired by prompt; null for the first. */
  readonly difference: Interval | null
  /** The share of the answers to requests with a schema that fit it. */
  readonly validSchema: number | null
  /** Dollars for 1,000 answers; for our own models, of the machine. null: not known. */
  readonly costPerThousand: number | null
  readonly medianMs: number | null
  readonly slowMs: number | null
}

export interface Comparison {
  readonly metric: string
  /** Prompts that all have answered to the end. */
  readonly prompts: number
  /** Prompts with an answer that a limit cut: unfinished, not wrong. */
  readonly unfinished: number
  /** Prompts that someone gave no answer to. */
  readonly unanswered: number
  /** The first is what the others are compared with. */
  readonly rows: readonly Row[]
  /** What the new adapter has of the old model's gain over the base. */
  readonly shareOfGain: Interval | null
  readonly verdict: string
}

/** @param dollarsPerHour of the machine that our own models run on */
export async function compare(
  answered: readonly Answered[],
  contestants: readonly Contestant[],
  measure: Measure,
  dollarsPerHour = 0,
): Promise<Comparison> {
  const whole = answered.filter(({ answers }) => contestants.every((name) => answers[name] !== undefined))
  const finished = whole.filter(({ answers }) => contestants.every((name) => answers[name]!.finish !== 'length'))
  const scored: { item: Answered; scores: number[] }[] = []
  for (const item of finished) {
    const scores = await Promise.all(contestants.map((name) => measure.score(item.prompt, item.answers[name]!.answer)))
    if (scores.every((score) => score !== null)) scored.push({ item, scores: scores as number[] })
  }
  const mean = (records: ArrayLike<number>, of: number) =>
    Array.from(records, (record) => scored[record].scores[of]).reduce((sum, score) => sum + score, 0) / records.length
  const placeOf = (name: Contestant) => contestants.indexOf(name)
  const share = (records: ArrayLike<number>) => {
    const [old, base, ours] = (['old', 'base', 'new'] as const).map((name) => mean(records, placeOf(name)))
    return (ours - base) / (old - base)
  }
  const hasAll = contestants.length === 3
  const statistics = contestants.map((name, i) => (records: ArrayLike<number>) => ({
    score: mean(records, i),
    ...(hasAll && name === 'new' && { share: share(records) }),
  }))
  const measured = scored.length === 0 ? [] : bootstrap(statistics, scored.length, { resamples: 2000, seed: 42 })
  const rows = measured.map(({ metrics, differences }, i): Row => {
    const name = contestants[i]
    const given = scored.map(({ item }) => item.answers[name]!)
    const valid = scored.flatMap(({ item }) => fitsSchema(item.prompt, item.answers[name]!.answer) ?? [])
    const times = given.flatMap(({ ms }) => ms ?? []).sort((a, b) => a - b)
    const costs = given.map(({ cost, ms = 0 }) => cost ?? (ms / 3_600_000) * dollarsPerHour)
    return {
      name,
      score: metrics.score,
      difference: differences?.score ?? null,
      validSchema: valid.length === 0 ? null : valid.filter(Boolean).length / valid.length,
      costPerThousand:
        name !== 'old' && dollarsPerHour === 0 ? null : (1000 * costs.reduce((a, b) => a + b, 0)) / costs.length,
      medianMs: times[times.length >> 1] ?? null,
      slowMs: times[Math.floor(0.95 * times.length)] ?? null,
    }
  })
  return {
    metric: measure.name,
    prompts: scored.length,
    unfinished: whole.length - finished.length,
    unanswered: answered.length - whole.length + finished.length - scored.length,
    rows,
    shareOfGain: measured.at(placeOf('new'))?.metrics.share ?? null,
    verdict: verdictOf(rows, scored.length),
  }
}

function verdictOf(rows: readonly Row[], prompts: number): string {
  const { difference } = rows.find(({ name }) => name === 'new') ?? {}
  const against = rows[0]?.name === 'old' ? 'the old model' : 'its base'
  if (!difference) return 'There are no prompts to compare on.'
  const { value, low, high } = difference
  if (prompts < LEAST_PROMPTS || low === null || high === null) {
    const half = low === null || high === null ? 0.5 : (high - low) / 2
    const needed = Math.max(LEAST_PROMPTS, Math.ceil(prompts * (half / SHOWN_DIFFERENCE) ** 2))
    return `No verdict: ${prompts} prompts are too few. It would need about ${needed}.`
  }
  const points = (share: number) => `${Math.abs(100 * share).toFixed(1)} points`
  const range = `95 %: ${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)} points`
  if (low > 0) return `Better than ${against} by ${points(value)} (${range}).`
  if (rows[0].name !== 'old')
    return high < 0
      ? `Worse than ${against} by ${points(value)} (${range}).`
      : `Not surely better than ${against} (${range}).`
  if (low >= -MARGIN) return `As good as ${against}: at most ${points(low)} worse (${range}).`
  if (high < 0) return `Not good enough: worse than ${against} by ${points(value)} (${range}).`
  return `Not decided: it may be worse than ${against} by up to ${points(low)} (${range}).`
}

const NAMES: Readonly<Record<Contestant, string>> = { old: 'old model', base: 'base', new: 'new adapter' }

export function sectionOf(
  title: string,
  { rows, metric, prompts, unfinished, unanswered, shareOfGain, verdict }: Comparison,
): Section[] {
  const percent = (value: number | null | undefined): Cell =>
    value === null || value === undefined ? null : Number((100 * value).toFixed(1))
  const range = ({ low, high }: Interval) =>
    low === null || high === null ? null : `${percent(low)} to ${percent(high)}`
  return [
    {
      kind: 'facts',
      title,
      facts: [
        ['verdict', verdict],
        ['metric', metric],
        ['prompts', `${prompts} compared, ${unfinished} unfinished, ${unanswered} without an answer`],
        ...(shareOfGain === null
          ? []
          : [['share of the old gain', `${percent(shareOfGain.value)} %, 95 %: ${range(shareOfGain)}`] as const]),
      ],
    },
    {
      kind: 'table',
      title: `${title}: scores in percent`,
      columns: [
        'model',
        'score',
        '95 %',
        'minus the first',
        '95 %',
        'valid schema',
        '$ per 1,000',
        'median ms',
        '95 % of answers within ms',
      ],
      rows: rows.map(({ name, score, difference, ...row }) => [
        ...[
          NAMES[name],
          percent(score.value),
          range(score),
          percent(difference?.value),
          difference && range(difference),
        ],
        ...[
          percent(row.validSchema),
          row.costPerThousand,
          row.medianMs && Math.round(row.medianMs),
          row.slowMs && Math.round(row.slowMs),
        ],
      ]),
    },
  ]
}
